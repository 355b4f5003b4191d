"""Reading in bulk gives what reading one by one gives, row by row."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import write_inputs
from sqlalchemy import select, update
from support.campaigns import run_inline
from support.rows import add_label

from hpcal.core.dataset import Dataset
from hpcal.core.errors import StoreError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import bulk_read, campaigns, labels, structures
from hpcal.store.bulk_read import isolated_atoms, read_dataset
from hpcal.store.database import Store
from hpcal.store.rows import level_id
from hpcal.store.tables import LabelRow, SelectionRow, StructureRow
from hpcal.store.transitions import StructureState

pytestmark = pytest.mark.stores

LEVEL = LevelOfTheory(code="made", version="1", method="up")
OTHER = LevelOfTheory(code="made", version="1", method="elsewhere")
FROM_STORE = ("origins", "generations", "uncertainties")


def assert_same(found: Dataset | None, pairs: list[tuple[StructureRow, Structure, Label]]) -> None:
    """The arrays are those of the rows, and each structure and label is the one of its row."""
    assert found is not None
    assert len(found) == len(pairs) > 0
    rows = [row for row, _, _ in pairs]
    expected = Dataset.of(
        [structure for _, structure, _ in pairs],
        [label for _, _, label in pairs],
        ids=[row.id for row in rows],
        splits=[row.split for row in rows],
    )
    for field in fields(Dataset):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name in FROM_STORE:
            continue
        if field.name == "level" or theirs is None:
            assert ours == theirs, field.name
        else:
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
    assert found.origins.tolist() == [row.origin for row in rows]
    assert found.generations.tolist() == [row.generation for row in rows]
    for i, (row, structure, label) in enumerate(pairs):
        assert found.structure(i).content_hash == structure.content_hash == row.hash == found.hashes[i]
        ours = found.label(i)
        for name in ("energy", "forces", "stress", "dipole", "dipole_origin", "charges"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(label, name))
        assert (ours.level, ours.charge_scheme) == (label.level, label.charge_scheme)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaign")
    run_inline(write_inputs(folder), folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_a_campaign_is_read_as_one_by_one(campaign: Path) -> None:
    store = Store.read(campaign)
    with store.session() as session:
        number = campaigns.campaign(session).level_of_theory_id
        level = labels.level_by_id(session, number)
        for arguments in (
            {},
            {"splits": (Split.TRAIN, Split.VALIDATION)},
            {"splits": (Split.TEST,)},
            {"after": 5, "up_to": 19},
            {"after": 20},
            {"ids": [7, 3, 9, 11, 100_000]},
        ):
            expected = labels.labelled(session, level, number, **arguments)
            assert_same(read_dataset(session, level, number, **arguments), expected)
        assert read_dataset(session, level, number, after=10**6) is None
        assert read_dataset(session, level, number, ids=[]) is None
        assert read_dataset(session, level, number + 1) is None
    store.close()


def test_uncertainty_is_that_of_the_newest_decision_to_label(campaign: Path) -> None:
    store = Store.read(campaign)
    with store.session() as session:
        number = campaigns.campaign(session).level_of_theory_id
        level = labels.level_by_id(session, number)
        found = read_dataset(session, level, number, with_uncertainty=True)
        some = read_dataset(session, level, number, ids=found.ids[::3].tolist(), with_uncertainty=True)
        for i, structure_id in enumerate(found.ids.tolist()):
            row = session.scalars(
                select(SelectionRow)
                .where(
                    SelectionRow.structure_id == structure_id, SelectionRow.decision.in_(("chosen", "audit"))
                )
                .order_by(SelectionRow.id.desc())
            ).first()
            value = found.uncertainties[i]
            assert np.isnan(value) if row is None or row.value is None else value == row.value
        assert read_dataset(session, level, number).uncertainties is None
    store.close()
    sampled = np.isin(found.origins, ["sample", "audit"])
    assert 0 < sampled.sum() < len(found)
    assert np.isfinite(found.uncertainties[sampled]).all()
    assert np.isnan(found.uncertainties[~sampled]).all()
    np.testing.assert_array_equal(some.uncertainties, found.uncertainties[::3])


def random_pair(rng: np.random.Generator, i: int, level: LevelOfTheory) -> tuple[Structure, Label]:
    """A structure and a label; each part that may lack does so in some of them."""
    n = int(rng.integers(1, 8))
    cell = rng.normal(size=(3, 3)) * 5 if i % 3 == 0 else None
    structure = Structure(
        numbers=rng.integers(1, 119, n),
        positions=rng.normal(size=(n, 3)),
        cell=cell,
        pbc=(cell is not None, False, cell is not None and i % 2 == 0),
        charge=int(rng.integers(-2, 3)),
        multiplicity=int(rng.integers(1, 4)),
        magnetic_moments=rng.normal(size=n) if i % 5 == 0 else None,
    )
    label = Label(
        energy=rng.normal() * 1e4,
        forces=rng.normal(size=(n, 3)) if i % 4 else None,
        stress=rng.normal(size=(3, 3)) if cell is not None and i % 2 else None,
        dipole=rng.normal(size=3) if i % 7 else None,
        dipole_origin=rng.normal(size=3) if i % 7 and i % 2 else None,
        charges=rng.normal(size=n) if i % 3 else None,
        charge_scheme="mulliken" if i % 3 and i % 2 else None,
        level=level,
    )
    return structure, label


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """89 labelled structures at one level, 11 at another, in every split."""
    rng = np.random.default_rng(3)
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
        levels = {level: level_id(session, level) for level in (LEVEL, OTHER)}
        for i in range(100):
            level = OTHER if i % 9 == 8 else LEVEL
            structure, label = random_pair(rng, i, level)
            row = structures.add_structure(
                session, structure, origin="given" if i % 2 else "sample", state=StructureState.LABELLED,
                split=tuple(Split)[i % len(Split)], generation=i // 20,
            )  # fmt: skip
            counted = row.split is not Split.REFERENCE
            add_label(session, row, label, level_id=levels[level], counted=counted)
        retracted = session.scalars(select(LabelRow.id).limit(3)).all()
        session.execute(update(LabelRow).where(LabelRow.id.in_(retracted)).values(retracted="wrong"))
    yield store
    store.close()


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_everything_a_label_can_have(store: Store, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_read, "CHUNK", chunk)
    with store.session() as session:
        for level in (LEVEL, OTHER):
            number = level_id(session, level)
            for arguments in (
                {},
                {"splits": (Split.REFERENCE, Split.TRAIN)},
                {"ids": list(range(60, 20, -1))},
                {"splits": (Split.TRAIN,), "after": 3, "up_to": 50},
            ):
                expected = labels.labelled(session, level, number, **arguments)
                assert_same(read_dataset(session, level, number, **arguments), expected)


def test_arrays_that_no_label_has_are_absent(store: Store) -> None:
    with store.session() as session:
        number = level_id(session, LEVEL)
        plain = [
            row.id
            for row, structure, label in labels.labelled(session, LEVEL, number)
            if label.stress is None and structure.magnetic_moments is None
        ]
        found = read_dataset(session, LEVEL, number, ids=plain)
    assert found.stresses is None
    assert found.magnetic_moments is None
    assert found.dipoles is not None


def test_a_blob_of_another_size_is_refused(store: Store) -> None:
    with store.write() as session:
        first = session.scalars(select(StructureRow.id).limit(1).offset(20)).one()
        session.execute(update(StructureRow).where(StructureRow.id == first).values(positions=b"\0" * 8))
    with store.session() as session, pytest.raises(StoreError, match="positions of the labelled structures"):
        read_dataset(session, LEVEL, level_id(session, LEVEL))


def test_isolated_atoms_are_neutral_and_not_periodic(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    atom = Structure(numbers=[11], positions=np.zeros((1, 3)), multiplicity=2)
    crystal = replace(atom, cell=4 * np.eye(3), pbc=(True, True, True))
    boxed = replace(atom, cell=20 * np.eye(3), positions=np.ones((1, 3)))
    ion = replace(atom, charge=1, multiplicity=1)
    pair = Structure(numbers=[11, 17], positions=[[0, 0, 0], [0, 0, 2.4]])
    with store.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
        number = level_id(session, LEVEL)
        assert isolated_atoms(session, LEVEL, number) is None
        for structure in (pair, atom, crystal, ion, boxed):
            row = structures.add_structure(
                session, structure, origin="given", state=StructureState.LABELLED, split=Split.TRAIN
            )
            label = Label(energy=-1.0, forces=None, level=LEVEL)
            add_label(session, row, label, level_id=number)
    with store.session() as session:
        found = isolated_atoms(session, LEVEL, number)
        assert isolated_atoms(session, OTHER, number + 1) is None
    store.close()
    assert found.structures() == [atom, boxed]
