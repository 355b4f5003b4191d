"""Values as rows and rows as values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from hpcal.core.arrays import FloatArray
from hpcal.core.fingerprint import fingerprint
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split, Walker
from hpcal.store.connect import as_json
from hpcal.store.tables import SIBLINGS, LabelRow, LevelOfTheoryRow, StructureRow, WalkerRow
from hpcal.store.transitions import StructureState


def blob(array: Any, dtype: str = "<f8") -> bytes:
    """An array as little-endian bytes."""
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def optional_blob(array: Any) -> bytes | None:
    """An array of float64 as bytes, or None."""
    return None if array is None else blob(array)


def array(data: bytes, shape: tuple[int, ...] = (-1,), dtype: str = "<f8") -> FloatArray:
    """Bytes as an array."""
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def optional_array(data: bytes | None, shape: tuple[int, ...]) -> FloatArray | None:
    """Bytes as an array, or None."""
    return None if data is None else array(data, shape)


def structure_row(
    structure: Structure,
    *,
    origin: str,
    state: StructureState,
    split: Split,
    generation: int = 0,
    **columns: Any,
) -> StructureRow:
    """A new row for a structure; further columns by name."""
    return StructureRow(
        hash=structure.content_hash,
        state=state,
        origin=origin,
        split=split,
        generation=generation,
        n_atoms=len(structure),
        formula=structure.formula,
        numbers=structure.numbers.astype("u1").tobytes(),
        positions=blob(structure.positions),
        cell=optional_blob(structure.cell),
        pbc=sum(1 << i for i, periodic in enumerate(structure.pbc) if periodic),
        charge=structure.charge,
        multiplicity=structure.multiplicity,
        magnetic_moments=optional_blob(structure.magnetic_moments),
        created=time.time(),
        fingerprint=fingerprint(structure),
        **columns,
    )


def family(row: StructureRow) -> int:
    """The walker that a structure comes from, or minus its id: frames of one family are alike.

    All electronic states of a geometry are of one family.
    """
    if row.walker_id is not None:
        return row.walker_id
    return -(row.parent_id or row.id) if row.origin in SIBLINGS else -row.id


def structure_of(row: StructureRow, positions: bytes | None = None) -> Structure:
    """The structure of a row, at other positions if those are given."""
    return Structure(
        numbers=np.frombuffer(row.numbers, dtype="u1").astype(np.int64),
        positions=array(positions or row.positions, (-1, 3)),
        cell=optional_array(row.cell, (3, 3)),
        pbc=(bool(row.pbc & 1), bool(row.pbc & 2), bool(row.pbc & 4)),
        charge=row.charge,
        multiplicity=row.multiplicity,
        magnetic_moments=optional_array(row.magnetic_moments, (-1,)),
    )


def walker_of(row: WalkerRow, seed: StructureRow) -> Walker:
    """The walker of a row; ``seed`` is the structure that it was born from."""
    return Walker(
        id=row.id,
        structure=structure_of(seed, row.positions),
        velocities=optional_array(row.velocities, (-1, 3)),
        step=row.step,
        steps_full=row.steps_full,
        stream=row.stream,
        temperature=row.temperature,
        offers_candidates=not row.split.audit,
        frames_at=tuple(int(step) for step in row.frames_at),
        state=row.parameters,
    )


def label_columns(labels: Sequence[Label]) -> dict[str, list[Any]]:
    """The columns of labels, what belongs to their rows alone left out."""
    return {
        "energy": [label.energy for label in labels],
        "forces": [optional_blob(label.forces) for label in labels],
        "stress": [optional_blob(label.stress) for label in labels],
        "dipole": [optional_blob(label.dipole) for label in labels],
        "dipole_origin": [optional_blob(label.dipole_origin) for label in labels],
        "charges": [optional_blob(label.charges) for label in labels],
        "charge_scheme": [label.charge_scheme for label in labels],
        "quadrupole": [optional_blob(label.quadrupole) for label in labels],
        "other_charges": [_rows(label.other_charges) for label in labels],
        "other_schemes": [
            as_json(list(label.other_charges)) if label.other_charges else None for label in labels
        ],
        "diagnostics": [as_json(dict(label.diagnostics)) for label in labels],
        "qm_calls": [label.qm_calls for label in labels],
    }


def label_of(row: LabelRow, level: LevelOfTheory) -> Label:
    """The label of a row."""
    return Label(
        energy=row.energy,
        forces=optional_array(row.forces, (-1, 3)),
        stress=optional_array(row.stress, (3, 3)),
        dipole=optional_array(row.dipole, (3,)),
        dipole_origin=optional_array(row.dipole_origin, (3,)),
        charges=optional_array(row.charges, (-1,)),
        charge_scheme=row.charge_scheme,
        quadrupole=optional_array(row.quadrupole, (3, 3)),
        other_charges=_by_scheme(row),
        level=level,
        diagnostics=row.diagnostics,
        qm_calls=row.qm_calls,
    )


def _rows(charges: Mapping[str, FloatArray]) -> bytes | None:
    """Charges by several schemes as one (K, N) BLOB."""
    return blob(np.array(list(charges.values()))) if charges else None


def _by_scheme(row: LabelRow) -> dict[str, FloatArray]:
    if row.other_charges is None or not row.other_schemes:
        return {}
    return dict(zip(row.other_schemes, array(row.other_charges, (len(row.other_schemes), -1)), strict=True))


def level_id(session: Session, level: LevelOfTheory) -> int:
    """Row of a level of theory, made where it is new."""
    row = session.query(LevelOfTheoryRow).filter_by(hash=level.hash).one_or_none()
    if row is None:
        row = LevelOfTheoryRow(hash=level.hash, record=level.as_dict())
        session.add(row)
        session.flush()
    return row.id


def level_of(row: LevelOfTheoryRow) -> LevelOfTheory:
    """The level of theory of a row."""
    return LevelOfTheory.of(row.record)
