"""Reading labelled structures by the hundred thousand, straight into flat arrays.

Rows come as plain tuples of their columns, and the BLOBs of each column are joined into one array,
so that no object and no array is made for a single structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from struct import pack
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, Select, String, func, select, type_coerce
from sqlalchemy.orm import Session

from hpcal.core.arrays import FloatArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import StoreError
from hpcal.core.label import LevelOfTheory
from hpcal.core.walker import Split
from hpcal.store.tables import LabelRow, SelectionRow, StructureRow

_S: Final = StructureRow.__table__.c
_L: Final = LabelRow.__table__.c
_D: Final = SelectionRow.__table__.c
_COLUMNS: Final = (
    _S.id,
    type_coerce(_S.split, String).label("split"),
    _S.hash,
    _S.origin,
    _S.generation,
    _S.numbers,
    _S.positions,
    _S.cell,
    _S.pbc,
    _S.charge,
    _S.multiplicity,
    _S.magnetic_moments,
    _L.energy,
    _L.forces,
    _L.stress,
    _L.dipole,
    _L.dipole_origin,
    _L.charges,
    _L.charge_scheme,
)
_NAMES: Final = tuple(column.key for column in _COLUMNS)
_NAN: Final = pack("<d", float("nan"))
_ZERO: Final = pack("<d", 0.0)
_PLAIN: Final = (
    "split", "hash", "origin", "generation", "pbc", "charge", "multiplicity", "energy", "charge_scheme",
)  # fmt: skip
_PER_STRUCTURE: Final[dict[str, tuple[tuple[int, ...], bytes]]] = {
    "cell": ((3, 3), _ZERO),
    "stress": ((3, 3), _NAN),
    "dipole": ((3,), _NAN),
    "dipole_origin": ((3,), _NAN),
}
"""Shape of one structure's array, and the number that stands for none."""
_PER_ATOM: Final = {"positions": 3, "forces": 3, "charges": 1, "magnetic_moments": 1}
"""Numbers an atom; NaN stands for none."""
SELECTED: Final = ("chosen", "audit")
"""Decisions by which a structure got its label."""
CHUNK: Final = 10_000
"""Rows that are held as tuples at a time, and ids that are asked for at a time."""


def read_dataset(
    session: Session,
    level: LevelOfTheory,
    level_id: int,
    *,
    splits: Sequence[Split] = tuple(Split),
    after: int | None = None,
    up_to: int | None = None,
    ids: Sequence[int] | None = None,
    with_uncertainty: bool = False,
) -> Dataset | None:
    """Labelled structures at a level, in the order of their commit numbers, or None without any.

    Those without a commit number (the fixed reference set) come first.

    Args:
        splits: only labels of these splits.
        after: only labels with a higher commit number.
        up_to: only labels up to this commit number.
        ids: only these structures.
        with_uncertainty: also the uncertainty at selection: the value in the newest decision to
            label a structure.

    Raises:
        StoreError: arrays in the store whose sizes do not fit their structures.
    """
    wanted = [
        _L.level_of_theory_id == level_id,
        _L.retracted.is_(None),
        _L.split.in_(list(splits)),
        *([] if after is None else [_L.seq > after]),
        *([] if up_to is None else [_L.seq <= up_to]),
    ]
    table = _Table()
    for rows in _rows(session, wanted, ids):
        table.add(rows)
    if not table.ids:
        return None
    dataset = table.dataset(level)
    if not with_uncertainty:
        return dataset
    return replace(dataset, uncertainties=_uncertainties(session, wanted, table.ids, ids))


def _uncertainties(
    session: Session,
    wanted: Sequence[ColumnElement[bool]],
    structures: Sequence[int],
    ids: Sequence[int] | None,
) -> FloatArray:
    """(n,) value of the metric in the newest decision to label each structure; NaN without one."""
    decision = (
        select(func.max(_D.id))
        .join(LabelRow.__table__, _L.structure_id == _D.structure_id)
        .where(_D.decision.in_(SELECTED), *wanted)
        .group_by(_D.structure_id)
    )
    groups = [None] if ids is None else [structures[i : i + CHUNK] for i in range(0, len(structures), CHUNK)]
    found: dict[int, float] = {}
    for group in groups:
        newest = decision if group is None else decision.where(_D.structure_id.in_(group))
        values = select(_D.structure_id, _D.value).where(_D.id.in_(newest), _D.value.is_not(None))
        found.update((row[0], row[1]) for row in session.execute(values))
    return np.array([found.get(i, np.nan) for i in structures], dtype=np.float64)


def isolated_atoms(session: Session, level: LevelOfTheory, level_id: int) -> Dataset | None:
    """Labelled neutral single atoms that are not periodic, or None without any."""
    ids = session.scalars(
        select(_S.id)
        .join(LabelRow.__table__, _L.structure_id == _S.id)
        .where(
            _S.n_atoms == 1,
            _S.pbc == 0,
            _S.charge == 0,
            _L.level_of_theory_id == level_id,
            _L.retracted.is_(None),
        )
    )
    return read_dataset(session, level, level_id, ids=list(ids))


def _rows(
    session: Session, wanted: Sequence[ColumnElement[bool]], ids: Sequence[int] | None
) -> Iterator[Sequence[Any]]:
    """Rows in chunks, in the order of their commit numbers."""
    # NULLS FIRST is what SQLite does without being told, so that the index gives the order.
    order = (_L.seq.asc().nulls_first(), _L.id)
    query: Select[Any] = select(*_COLUMNS).join(LabelRow.__table__, _L.structure_id == _S.id).where(*wanted)
    if ids is None:
        options = {"yield_per": CHUNK}
        yield from session.execute(query.order_by(*order), execution_options=options).partitions()
        return
    # Databases bound the parameters of a query, so the order is found before the rows are read.
    known = sorted({int(i) for i in ids})
    places: list[Any] = []
    for start in range(0, len(known), CHUNK):
        part = select(_L.structure_id, _L.seq, _L.id).where(*wanted)
        places += session.execute(part.where(_L.structure_id.in_(known[start : start + CHUNK]))).all()
    places.sort(key=lambda row: (row[1] is not None, row[1] or 0, row[2]))
    for start in range(0, len(places), CHUNK):
        part_ids = [row[0] for row in places[start : start + CHUNK]]
        found = session.execute(query.where(_S.id.in_(part_ids)).order_by(*order)).all()
        yield found


class _Blobs:
    """The BLOBs of one column, one after the other."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.any = False

    def add(self, blobs: Sequence[bytes | None], fill: Sequence[bytes] | bytes) -> None:
        """Adds a column of rows; ``fill`` stands for those that have none."""
        if None not in blobs:
            self.any = True
            self.data += b"".join(blobs)  # type: ignore[arg-type]
            return
        self.any = self.any or any(blob is not None for blob in blobs)
        if isinstance(fill, bytes):
            self.data += b"".join([fill if blob is None else blob for blob in blobs])
        else:
            self.data += b"".join([f if b is None else b for b, f in zip(blobs, fill, strict=True)])

    def array(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """The column as float64. Raises StoreError if it does not fill the shape."""
        if len(self.data) != 8 * int(np.prod(shape)):
            raise StoreError(
                f"the store is damaged: {name} of the labelled structures are {len(self.data)} bytes, not "
                f"the {8 * int(np.prod(shape))} of {shape}; take the store back from a copy"
            )
        return np.frombuffer(self.data, dtype="<f8").reshape(shape)

    def known(self, name: str, shape: tuple[int, ...]) -> FloatArray | None:
        """As :meth:`array`, or None where no row has any."""
        return self.array(name, shape) if self.any else None


class _Table:
    """Rows as columns."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.numbers = bytearray()
        self.sizes: list[int] = []
        self.plain: dict[str, list[Any]] = {name: [] for name in _PLAIN}
        self.blobs = {name: _Blobs() for name in (*_PER_STRUCTURE, *_PER_ATOM)}

    def add(self, rows: Sequence[Any]) -> None:
        """Adds rows of ``_COLUMNS``."""
        if not rows:
            return
        columns = dict(zip(_NAMES, zip(*rows, strict=True), strict=True))
        self.ids += columns["id"]
        self.numbers += b"".join(columns["numbers"])
        sizes = [len(numbers) for numbers in columns["numbers"]]
        self.sizes += sizes
        for name, values in self.plain.items():
            values.extend(columns[name])
        for name, (shape, fill) in _PER_STRUCTURE.items():
            self.blobs[name].add(columns[name], fill * int(np.prod(shape)))
        for name, width in _PER_ATOM.items():
            missing = [_NAN * (width * size) for size in sizes] if None in columns[name] else b""
            self.blobs[name].add(columns[name], missing)

    def dataset(self, level: LevelOfTheory) -> Dataset:
        """The rows as a data set. Raises StoreError."""
        n, atoms = len(self.ids), len(self.numbers)
        plain, blobs = self.plain, self.blobs
        masks = np.array(plain["pbc"], dtype=np.int64)
        charges = blobs["charges"].known("charges", (atoms,))
        schemes = None if charges is None else np.array([scheme or "" for scheme in plain["charge_scheme"]])
        return Dataset(
            ids=np.array(self.ids, dtype=np.int64),
            splits=np.array(plain["split"]),
            offsets=np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64),
            numbers=np.frombuffer(self.numbers, dtype="u1").astype(np.int64),
            positions=blobs["positions"].array("positions", (atoms, 3)),
            energies=np.array(plain["energy"], dtype=np.float64),
            forces=blobs["forces"].array("forces", (atoms, 3)),
            charges=np.array(plain["charge"], dtype=np.int64),
            multiplicities=np.array(plain["multiplicity"], dtype=np.int64),
            cells=blobs["cell"].array("cells", (n, 3, 3)),
            pbc=(masks[:, None] & np.array([1, 2, 4])) != 0,
            level=level,
            stresses=blobs["stress"].known("stresses", (n, 3, 3)),
            dipoles=blobs["dipole"].known("dipoles", (n, 3)),
            dipole_origins=blobs["dipole_origin"].known("dipole origins", (n, 3)),
            atomic_charges=charges,
            charge_schemes=schemes,
            magnetic_moments=blobs["magnetic_moments"].known("magnetic moments", (atoms,)),
            hashes=np.array(plain["hash"]),
            origins=np.array(plain["origin"]),
            generations=np.array(plain["generation"], dtype=np.int64),
        )
