"""An ensemble as the source of labels: its mean, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.batch import Batch
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256, load_ensemble
from hpcal.core.errors import FailureClass, FormatError, InputError
from hpcal.core.label import Label, Rejection
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Capabilities
from hpcal.core.structure import Structure
from hpcal.labeling.make import make_labeler
from hpcal.labeling.teacher import Teacher, TeacherSettings

WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])


def write_ensemble(folder: Path, depth: float) -> None:
    """Three Morse potentials for H and O that disagree."""
    morse = find(Group.POTENTIALS, "morse")
    members = []
    for index in range(3):
        path = morse.write_member(folder / f"{index}.json", [1, 8], well_depth_eV=depth + 0.3 * index)
        members.append(MemberFile(path=str(path), sha256=file_sha256(path)))
    EnsembleManifest(kind="morse", members=tuple(members)).write(folder)


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    write_ensemble(tmp_path, depth=4.0)
    return tmp_path


def teacher(folder: Path) -> Teacher:
    return Teacher(TeacherSettings(model=folder))


def test_the_label_is_the_mean_of_the_members(ensemble: Path) -> None:
    label = teacher(ensemble).label(WATER, Deadline())
    assert isinstance(label, Label)
    potential = load_ensemble(EnsembleManifest.read(ensemble), dtype="float64")
    batch = Batch.of([WATER], dtype=torch.float64)
    energies = potential.energies(batch)[:, 0].numpy()
    assert np.ptp(energies) > 1e-3
    assert label.energy == pytest.approx(energies.mean(), abs=1e-12)
    members = potential.member_forces(batch)[:, 0].numpy()
    assert label.forces == pytest.approx(members.mean(axis=0), abs=1e-10)
    assert label.diagnostics["energy_std"] == pytest.approx(energies.std(), abs=1e-12)


def test_forces_are_the_negative_gradient(ensemble: Path) -> None:
    oracle, step = teacher(ensemble), 1e-4
    label = oracle.label(WATER, Deadline())
    shift = np.zeros((3, 3))
    shift[1, 2] = step
    ahead = oracle.label(WATER.with_positions(WATER.positions + shift), Deadline()).energy
    behind = oracle.label(WATER.with_positions(WATER.positions - shift), Deadline()).energy
    assert label.forces[1, 2] == pytest.approx((behind - ahead) / (2 * step), abs=1e-6)


def test_the_level_is_the_ensemble(ensemble: Path) -> None:
    level = teacher(ensemble).level
    assert level.code == "hpcal-teacher"
    assert level.version == EnsembleManifest.read(ensemble).hash[:12]
    assert level.method == "morse"


def test_elements_and_boundaries(ensemble: Path) -> None:
    oracle = teacher(ensemble)
    assert oracle.missing_elements([1, 6, 8]) == (6,)
    crystal = Structure(
        numbers=WATER.numbers, positions=WATER.positions, cell=np.eye(3) * 4, pbc=(True, True, True)
    )
    label = oracle.label(crystal, Deadline())
    potential = load_ensemble(EnsembleManifest.read(ensemble), dtype="float64")
    expected = potential.stress(Batch.of([crystal], dtype=torch.float64))[0].numpy()
    assert np.abs(expected).max() > 1e-3
    assert label.stress == pytest.approx(expected, abs=1e-12)
    assert oracle.label(WATER, Deadline()).stress is None


def test_a_molecular_ensemble_refuses_crystals(ensemble: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    morse = type(load_ensemble(EnsembleManifest.read(ensemble), dtype="float64"))
    monkeypatch.setattr(morse, "capabilities", lambda _: Capabilities(periodic=False))
    crystal = Structure(
        numbers=WATER.numbers, positions=WATER.positions, cell=np.eye(3) * 9, pbc=(True, True, True)
    )
    result = teacher(ensemble).label(crystal, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("periodic", FailureClass.INPUT)


def test_states_that_the_ensemble_was_not_trained_on_are_refused(
    ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Energies that are extrapolated to another charge or spin are off by electronvolts."""
    cation = replace(WATER, charge=1, multiplicity=2)
    assert isinstance(teacher(ensemble).label(cation, Deadline()), Label)  # it knows of no states
    aware = teacher(ensemble)
    monkeypatch.setattr(aware, "_capabilities", Capabilities(charge_aware=True))
    monkeypatch.setattr(aware._potential, "states", frozenset({(0, 1), (-1, 2)}), raising=False)
    assert isinstance(aware.label(WATER, Deadline()), Label)
    result = aware.label(cation, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("state", FailureClass.INPUT)
    assert "charge -1 multiplicity 2, charge 0 multiplicity 1" in result.message


def test_through_the_front_door(ensemble: Path) -> None:
    with make_labeler("teacher", {"model": str(ensemble / "ensemble.json")}) as labeler:
        label = labeler.label(WATER, Deadline())
        assert label.diagnostics["checks"]["net_force"]["value"] < 1e-9
        carbon = Structure(numbers=[6], positions=[[0, 0, 0]])
        assert labeler.label(carbon, Deadline()).code == "element"


def test_what_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ensemble"):
        teacher(tmp_path / "nowhere")
    write_ensemble(tmp_path, depth=7.7)
    member = tmp_path / "0.json"
    member.write_bytes(member.read_bytes() + b" ")
    with pytest.raises(FormatError, match="damaged"):
        teacher(tmp_path)
