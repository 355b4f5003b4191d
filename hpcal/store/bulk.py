"""Writing many rows at once: by the database's own fast path, within the transaction at hand.

The object-relational layer costs some 100 µs a row. Here rows are tuples, ids are given out in
one step, and what can be computed for many structures together is.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, repeat
from typing import Any, Final

import numpy as np
from sqlalchemy import BigInteger, Dialect, Float, Integer, LargeBinary, Table, func, select, text
from sqlalchemy.orm import Session

from hpcal.core import elements
from hpcal.core.arrays import AnyArray, FloatArray
from hpcal.core.dataset import Dataset
from hpcal.core.fingerprint import fingerprint, fingerprints
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store.queries import commit_numbers
from hpcal.store.rows import label_columns
from hpcal.store.tables import Base, LabelRow, StructureRow
from hpcal.store.transitions import StructureState

Values = Sequence[Any]

# JSON travels as its text; what psycopg takes for json it would encode once more.
_COPY_TYPES: Final = {
    BigInteger: "int8",
    Integer: "int4",
    Float: "float8",
    LargeBinary: "bytea",
}


def insert_rows(session: Session, row: type[Base], columns: Sequence[str], rows: Iterable[Values]) -> None:
    """Adds rows to a table; each row has its values in the order of ``columns``, all of them plain.

    Words are strings, JSON is text, arrays are bytes. Columns that are not named stay NULL, as
    defaults of the object-relational layer do not apply here.
    """
    session.flush()
    table: Table = row.__table__  # type: ignore[assignment]
    connection = session.connection()
    raw: Any = connection.connection.dbapi_connection
    names = ", ".join(f'"{name}"' for name in columns)
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(columns))
        raw.executemany(f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', rows)
        return
    with (
        raw.cursor() as cursor,
        cursor.copy(f'COPY "{table.name}" ({names}) FROM STDIN (FORMAT BINARY)') as copy,
    ):
        copy.set_types([_copy_type(table, name, connection.dialect) for name in columns])
        for values in rows:
            copy.write_row(values)


def _copy_type(table: Table, column: str, dialect: Dialect) -> str:
    kind = table.columns[column].type.dialect_impl(dialect)
    return next((name for base, name in _COPY_TYPES.items() if isinstance(kind, base)), "varchar")


def reserve_ids(session: Session, row: type[Base], count: int) -> range:
    """Ids for new rows of a table; nobody else writes during the transaction."""
    session.flush()
    if not count:
        return range(0)
    table: Table = row.__table__  # type: ignore[assignment]
    if session.get_bind().dialect.name == "sqlite":
        first = (session.scalar(select(func.max(table.columns["id"]))) or 0) + 1
        return range(first, first + count)
    sequence = session.scalar(
        text("SELECT pg_get_serial_sequence(:table, 'id')"), {"table": f'"{table.name}"'}
    )
    last = session.scalar(
        text("SELECT setval(:sequence, nextval(:sequence) + :more)"),
        {"sequence": sequence, "more": count - 1},
    )
    if last is None:
        raise LookupError(f"table {table.name} has no sequence of ids")
    return range(last - count + 1, last + 1)


def insert_columns(session: Session, row: type[Base], count: int, columns: Mapping[str, Any]) -> None:
    """Adds ``count`` rows whose columns are lists (one value a row) or single values (the same for all)."""
    values = [
        value if isinstance(value, list | range) else repeat(value, count) for value in columns.values()
    ]
    insert_rows(session, row, list(columns), zip(*values, strict=True))


def add_structures(
    session: Session,
    dataset: Dataset,
    *,
    origin: str | list[str],
    state: StructureState,
    **columns: Any,
) -> range:
    """Adds the structures of a data set; returns their ids, in its order.

    Args:
        columns: further columns, as for :func:`insert_columns`.
    """
    n = len(dataset)
    ids = reserve_ids(session, StructureRow, n)
    numbers = _slices(dataset.numbers, dataset.offsets, "u1")
    made: dict[str, Any] = {
        "id": ids,
        "hash": content_hashes(dataset),
        "fingerprint": fingerprints_of(dataset).tolist(),
        "state": str(state),
        "origin": origin,
        "split": dataset.splits.tolist(),
        "n_atoms": dataset.sizes.tolist(),
        "formula": [_formula(z) for z in numbers],
        "numbers": numbers,
        "positions": _slices(dataset.positions, dataset.offsets, "<f8"),
        "cell": _cells(dataset),
        "pbc": (dataset.pbc.astype(np.int64) @ [1, 2, 4]).tolist(),
        "charge": dataset.charges.tolist(),
        "multiplicity": dataset.multiplicities.tolist(),
        "magnetic_moments": _atomic(dataset, dataset.magnetic_moments),
        "created": time.time(),
        "generation": 0,
        "priority": 0.0,
        "failures": 0,
    }
    insert_columns(session, StructureRow, n, made | columns)
    return ids


def add_labels(
    session: Session,
    ids: Sequence[int],
    dataset: Dataset,
    *,
    level_id: int,
    counted: bool = True,
    **columns: Any,
) -> None:
    """Adds the labels of a data set for structures that are in the store and have none at this level.

    Args:
        ids: the structures, in the order of the data set.
        counted: give them commit numbers; the fixed reference set has none.
        columns: further columns, as for :func:`insert_columns`.
    """
    n, splits = len(dataset), dataset.splits.tolist()
    charges = _atomic(dataset, dataset.atomic_charges)
    schemes = [None] * n if dataset.charge_schemes is None else [s or None for s in dataset.charge_schemes]
    made: dict[str, Any] = {
        "id": reserve_ids(session, LabelRow, n),
        **(commit_numbers(session, splits) if counted else {"seq": None, "split_seq": None}),
        "structure_id": list(ids),
        "level_of_theory_id": level_id,
        "split": splits,
        "energy": dataset.energies.tolist(),
        "forces": _atomic(dataset, dataset.forces),
        "stress": _optional(dataset.stresses, n),
        "dipole": _optional(dataset.dipoles, n),
        "dipole_origin": _optional(dataset.dipole_origins, n),
        "charges": charges,
        "charge_scheme": [None if c is None else str(s) for c, s in zip(charges, schemes, strict=True)],
        "diagnostics": "{}",
        "qm_calls": 0,
        "created": time.time(),
    }
    insert_columns(session, LabelRow, n, made | columns)


def add_labelled(
    session: Session,
    pairs: Sequence[tuple[Structure, Label]],
    splits: Sequence[Split],
    level_id: int,
    *,
    counted: bool = True,
    **columns: Any,
) -> Sequence[int]:
    """Adds structures that come with their labels, all of one level; returns their ids.

    Args:
        counted: give the labels commit numbers; the fixed reference set has none.
        columns: further columns of ``structure``, as for :func:`insert_columns`.
    """
    if not pairs:
        return ()
    labels = [label for _, label in pairs]
    dataset = Dataset.of([structure for structure, _ in pairs], labels, splits=splits)
    ids = add_structures(session, dataset, state=StructureState.LABELLED, **columns)
    own = {name: label_columns(labels)[name] for name in ("diagnostics", "qm_calls")}
    add_labels(session, ids, dataset, level_id=level_id, counted=counted, **own)
    return ids


def content_hashes(dataset: Dataset) -> list[str]:
    """:attr:`hpcal.core.structure.Structure.content_hash` of each structure of a data set."""
    numbers = _slices(dataset.numbers, dataset.offsets, "<i8")
    # Adding 0.0 turns -0.0 into 0.0, which is the same place.
    positions = _slices(dataset.positions + 0.0, dataset.offsets, "<f8")
    cells = _cells(dataset)
    moments = _atomic(dataset, dataset.magnetic_moments)
    hashes = []
    rows = zip(
        dataset.sizes.tolist(), dataset.charges.tolist(), dataset.multiplicities.tolist(),
        dataset.pbc.astype(bool).tolist(), numbers, positions, cells, moments, strict=True,
    )  # fmt: skip
    for n, charge, multiplicity, pbc, z, x, cell, moment in rows:
        content = f"{n} {charge} {multiplicity} {tuple(pbc)}".encode() + z + x
        if cell is not None:
            content += b"cell" + cell
        if moment is not None:
            content += b"moments" + moment
        hashes.append(hashlib.sha256(content).hexdigest())
    return hashes


def fingerprints_of(dataset: Dataset) -> FloatArray:
    """Invariant fingerprint of each structure of a data set, molecules of one size together."""
    found = np.empty(len(dataset))
    sizes, periodic = dataset.sizes, dataset.pbc.any(axis=1)
    for size in np.unique(sizes):
        chosen = np.flatnonzero((sizes == size) & ~periodic)
        if len(chosen):
            atoms = dataset.offsets[chosen][:, None] + np.arange(size)
            found[chosen] = fingerprints(dataset.numbers[atoms], dataset.positions[atoms])
    crystals = np.flatnonzero(periodic)
    if len(crystals):
        structures = dataset.structures()
        found[crystals] = [fingerprint(structures[i]) for i in crystals]
    return found


@lru_cache(maxsize=4096)
def _formula(numbers: bytes) -> str:
    return elements.formula(list(numbers))


def _slices(array: AnyArray, offsets: AnyArray, dtype: str) -> list[bytes]:
    """The bytes of each structure's part of an array over atoms."""
    data = np.ascontiguousarray(array, dtype=dtype)
    width = data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64))
    everything = data.tobytes()
    bounds = (offsets * width).tolist()
    return [everything[a:b] for a, b in pairwise(bounds)]


def _cells(dataset: Dataset) -> list[bytes | None]:
    """Cells as bytes, None where there is none."""
    there = np.any(dataset.cells, axis=(1, 2))
    if not there.any():
        return [None] * len(dataset)
    cells = np.ascontiguousarray(dataset.cells + 0.0, dtype="<f8")
    return [cell.tobytes() if has else None for cell, has in zip(cells, there, strict=True)]


def _atomic(dataset: Dataset, values: FloatArray | None) -> list[bytes | None]:
    """Each structure's part of an array over atoms as bytes; None where one of its values is unknown."""
    if values is None:
        return [None] * len(dataset)
    parts: list[bytes | None] = list(_slices(values, dataset.offsets, "<f8"))
    unknown = np.isnan(values).reshape(len(values), -1).any(axis=1)
    if unknown.any():
        holes = np.logical_or.reduceat(unknown, dataset.offsets[:-1])
        parts = [None if hole else part for hole, part in zip(holes.tolist(), parts, strict=True)]
    return parts


def _optional(values: FloatArray | None, n: int) -> list[bytes | None]:
    """Each structure's values as bytes; None where one of them is unknown."""
    if values is None:
        return [None] * n
    data = np.ascontiguousarray(values, dtype="<f8")
    return [None if np.isnan(row).any() else row.tobytes() for row in data]
