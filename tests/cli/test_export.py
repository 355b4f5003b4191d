"""What comes out of a campaign: data sets and ensembles, and what they are worth."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.io import read
from cli.helpers import hpcal
from support.rows import add_label

from hpcal.core.ensemble import EnsembleManifest, verify
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange.extxyz import read_labelled_frames
from hpcal.exchange.files import read_dataset
from hpcal.store import campaigns, labels, structures
from hpcal.store.database import Store
from hpcal.store.transitions import StructureState


def rows(root: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(root / "store.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def export(root: Path, out: Path, *args: str):
    result = hpcal("export", root, out, *args)
    assert result.exit_code == 0, result.stderr
    return result


def test_extxyz_holds_every_label_to_the_last_bit(finished, here):
    export(finished, here / "all.extxyz")
    frames = read_labelled_frames(here / "all.extxyz")
    stored = rows(
        finished,
        "SELECT structure.id, label.energy, label.forces, structure.positions, label.split, origin,"
        " generation FROM label JOIN structure ON structure.id = label.structure_id"
        " WHERE seq IS NOT NULL ORDER BY seq",
    )
    assert len(frames) == len(stored) > 20
    for frame, (number, energy, forces, positions, split, origin, generation) in zip(
        frames, stored, strict=True
    ):
        assert frame.label.energy == energy
        assert frame.label.forces.tobytes() == forces
        assert frame.structure.positions.tobytes() == positions
        assert frame.info["structure_id"] == str(number)
        assert frame.info["split"] == split
        assert frame.info["origin"] == origin
        assert frame.info["generation"] == str(generation)
    sampled = [f for f in frames if f.info["origin"] in ("sample", "audit")]
    assert sampled
    assert all(float(f.info["uncertainty"]) > 0.0 for f in sampled)


def test_ase_reads_what_is_exported(finished, here):
    export(finished, here / "all.extxyz")
    atoms = read(here / "all.extxyz", index=0)
    assert atoms.info["REF_energy"] < 0.0
    assert atoms.arrays["REF_forces"].shape == (3, 3)
    assert atoms.info["charge"] == 0
    assert atoms.info["multiplicity"] == 1


def test_hdf5_and_extxyz_hold_the_same(finished, here):
    export(finished, here / "all.h5")
    export(finished, here / "all.extxyz")
    one, two = read_dataset(here / "all.h5"), read_dataset(here / "all.extxyz")
    assert np.array_equal(one.energies, two.energies)
    assert np.array_equal(one.forces, two.forces)
    assert one.splits.tolist() == two.splits.tolist()
    assert one.level == two.level


def test_splits(finished, here):
    export(finished, here / "test.extxyz", "--split", "test", "--split", "calibration")
    audit = {f.info["split"] for f in read_labelled_frames(here / "test.extxyz")}
    assert audit <= {"test", "calibration"}
    result = hpcal("export", finished, here / "x.extxyz", "--split", "tset")
    assert result.exit_code == 2
    assert "did you mean 'test'?" in result.stderr
    result = hpcal("export", finished, here / "x.extxyz", "--split", "reference")
    assert result.exit_code == 2
    assert "no labelled structure" in result.stderr
    assert not (here / "x.extxyz").exists()


def test_the_data_set_of_a_generation_is_what_it_was_trained_on(finished, here):
    export(finished, here / "g1.extxyz", "--generation", "1")
    (size,) = rows(
        finished,
        "SELECT n_train + n_validation FROM dataset JOIN ensemble ON ensemble.dataset_id = dataset.id"
        " WHERE ensemble.generation = 1",
    )[0]
    frames = read_labelled_frames(here / "g1.extxyz")
    assert len(frames) == size
    assert {f.info["split"] for f in frames} <= {"train", "validation"}
    known = {int(f.info["structure_id"]) for f in frames}
    for (blob,) in rows(finished, "SELECT trained_on FROM model WHERE ensemble_id = 1"):
        assert set(np.frombuffer(blob, "<i8").tolist()) <= known


@pytest.mark.parametrize("args", [(), ("--ensemble",), ("--ensemble", "1"), ("--generation", "1")])
def test_an_ensemble_is_a_folder_that_needs_nothing_else(finished, here, args):
    out = here / "model"
    export(finished, out, *args)
    manifest = EnsembleManifest.read(out)
    verify(manifest.members)
    assert {Path(m.path).parent for m in manifest.members} == {out}
    assert not any(
        Path(m["path"]).is_absolute() for m in json.loads((out / "ensemble.json").read_text())["members"]
    )
    generation = (
        1
        if "1" in args
        else rows(finished, "SELECT max(generation) FROM ensemble WHERE state='promoted'")[0][0]
    )
    assert manifest.info["generation"] == generation
    assert manifest.info["metric"] == "force_std"
    assert manifest.info["threshold"] > 0.0


def test_an_ensemble_does_not_take_the_place_of_other_files(finished, here):
    result = hpcal("export", finished, here)
    assert result.exit_code == 2
    assert "holds no ensemble" in result.stderr


def test_an_extension_that_says_nothing(finished, here):
    result = hpcal("export", finished, here / "x.csv")
    assert result.exit_code == 2
    assert ".extxyz" in result.stderr


def test_a_generation_that_is_not_there(finished, here):
    for args in (("x.extxyz", "--generation", "77"), ("m", "--ensemble", "77"), ("m", "--ensemble", "seven")):
        result = hpcal("export", finished, *args)
        assert result.exit_code == 2, args
        assert len(result.stderr.splitlines()) == 1


def test_evaluate_says_of_the_audit_group_what_status_says(finished, here):
    export(finished, here / "test.extxyz", "--split", "test")
    status = json.loads(hpcal("status", finished, "--json").stdout)["ensemble"]
    for model in (
        f"{finished}@latest",
        f"{finished}@{status['generation']}",
        finished,
        finished / "ensemble",
    ):
        result = hpcal("evaluate", model, "test.extxyz", "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["count"] == status["count"] > 0
        for key in (
            "energy_mae_ev_per_atom",
            "energy_rmse_ev_per_atom",
            "force_mae_ev_per_ang",
            "force_rmse_ev_per_ang",
        ):
            assert found[key] == pytest.approx(status[key], rel=1e-4)


def test_errors_are_what_ase_finds(finished, here):
    from hpcal.ase import EnsembleCalculator

    export(finished, here / "all.extxyz")
    calculator = EnsembleCalculator(finished / "ensemble")
    energies, forces = [], []
    for atoms in read(here / "all.extxyz", index=":"):
        reference = atoms.info["REF_energy"], atoms.arrays["REF_forces"]
        atoms.calc = calculator
        energies.append((atoms.get_potential_energy() - reference[0]) / len(atoms))
        forces.append(atoms.get_forces() - reference[1])
    found = json.loads(hpcal("evaluate", finished / "ensemble", "all.extxyz", "--json").stdout)
    assert found["energy_mae_ev_per_atom"] == pytest.approx(np.abs(energies).mean(), rel=1e-3)
    assert found["force_rmse_ev_per_ang"] == pytest.approx(np.sqrt(np.mean(np.square(forces))), rel=1e-4)
    text = hpcal("evaluate", finished / "ensemble", "all.extxyz").stdout
    assert f"on {found['count']} structures" in text


def test_evaluate_restricted_to_a_split(finished, here):
    export(finished, here / "all.h5")
    args = ("evaluate", finished, "all.h5", "--split", "validation", "--json")
    found = json.loads(hpcal(*args).stdout)
    assert found["count"] == int((read_dataset(here / "all.h5").splits == "validation").sum())
    assert json.loads(hpcal(*args, "--split", "validation").stdout) == found


def test_evaluate_on_elements_that_the_ensemble_does_not_know(finished, here):
    (here / "n2.extxyz").write_text(
        '2\nProperties=species:S:1:pos:R:3:REF_forces:R:3 pbc="F F F" REF_energy=-3.0\n'
        "N 0 0 0 0 0 0\nN 0 0 1.1 0 0 0\n"
    )
    result = hpcal("evaluate", finished, "n2.extxyz")
    assert result.exit_code == 2
    assert "does not cover N (it covers H, O)" in result.stderr


def test_evaluate_notes_another_level_of_theory(finished, here):
    level = '"{\\"code\\": \\"pyscf\\", \\"version\\": \\"2\\", \\"method\\": \\"hf\\", \\"settings\\": {}}"'
    (here / "other.extxyz").write_text(
        f'2\nProperties=species:S:1:pos:R:3 pbc="F F F" REF_energy=-3.0 level={level}\nH 0 0 0\nH 0 0 0.8\n'
    )
    result = hpcal("evaluate", finished, "other.extxyz", "--json")
    assert result.exit_code == 0, result.stderr
    assert "note: the ensemble learned labels of morse" in result.stderr
    assert json.loads(result.stdout)["force_rmse_ev_per_ang"] is None


# ── Formats of others ────────────────────────────────────────────────────────────────────────


def labels_by_energy(root: Path) -> dict[float, tuple[bytes, bytes, str]]:
    """Positions, forces and split of each label, by its energy."""
    sql = (
        "SELECT label.energy, structure.positions, label.forces, label.split FROM label"
        " JOIN structure ON structure.id = label.structure_id WHERE seq IS NOT NULL"
    )
    return {energy: rest for energy, *rest in rows(root, sql)}


def test_an_ase_database_holds_every_label(finished, here):
    export(finished, here / "all.db")
    stored = labels_by_energy(finished)
    found = read(here / "all.db", index=":")
    assert len(found) == len(stored)
    for atoms in found:
        positions, forces, _ = stored[atoms.get_potential_energy()]
        assert atoms.positions.tobytes() == positions
        assert atoms.get_forces().tobytes() == forces


def test_ani_hdf5_is_in_hartree(finished, here):
    export(finished, here / "all.h5", "--format", "ani")
    stored = labels_by_energy(finished)
    with h5py.File(here / "all.h5") as file:
        assert list(file) == ["H2O"]
        energies = np.sort(file["H2O"]["energies"][()]) * 27.211386245988
        np.testing.assert_allclose(energies, sorted(stored), rtol=1e-14)


def test_a_deepmd_folder_keeps_splits_apart(finished, here):
    export(finished, here / "deep", "--format", "deepmd")
    stored = labels_by_energy(finished)
    count = 0
    for split in (here / "deep").iterdir():
        energies = np.load(split / "H2O/set.000/energy.npy")
        forces = np.load(split / "H2O/set.000/force.npy")
        for energy, force in zip(energies, forces, strict=True):
            assert stored[energy][1] == force.tobytes()
            assert stored[energy][2] == split.name
            count += 1
    assert count == len(stored)
    result = hpcal("export", finished, here / "deep", "--ensemble")
    assert result.exit_code == 2
    assert (here / "deep/train/H2O/type.raw").exists()


def test_uncertainty_and_hashes_are_in_hdf5(finished, here):
    export(finished, here / "all.h5")
    dataset = read_dataset(here / "all.h5")
    assert dataset.hashes.tolist() == [s.content_hash for s in dataset.structures()]
    sampled = np.isin(dataset.origins, ["sample", "audit"])
    assert (dataset.uncertainties[sampled] > 0).all()
    assert np.isnan(dataset.uncertainties[~sampled]).all()


def test_keys_of_mace(finished, here):
    export(finished, here / "all.extxyz", "--keys", "mace")
    for atoms in read(here / "all.extxyz", index=":"):
        assert atoms.info["total_charge"] == 0
        assert atoms.info["total_spin"] == 1
        assert atoms.info["config_type"] == atoms.info["origin"]


def add_atom(root: Path, number: int, energy: float) -> None:
    """A labelled single atom, which is what a user may have given along."""
    store = Store.open(root)
    atom = Structure(numbers=[number], positions=np.zeros((1, 3)), multiplicity=1 + number % 2)
    with store.write() as session:
        level_id = campaigns.campaign(session).level_of_theory_id
        label = Label(energy=energy, forces=np.zeros((1, 3)), level=labels.level_by_id(session, level_id))
        row = structures.add_structure(
            session, atom, origin="given", state=StructureState.LABELLED, split=Split.TEST
        )
        add_label(session, row, label, level_id=level_id, counted=False)
    store.close()


def test_isolated_atoms(own_copy, here):
    result = export(own_copy, here / "none.extxyz", "--isolated-atoms")
    assert "no label of a single atom of H, O at this level" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    for number, energy in ((1, -13.6), (1, -13.2), (7, -1480.0)):
        add_atom(own_copy, number, energy)
    result = export(own_copy, here / "some.extxyz", "--isolated-atoms", "--split", "train")
    assert "single atom of O at this level" in result.stderr
    assert "and 1 single atoms" in result.stdout
    frames = read(here / "some.extxyz", index=":")
    marked = [a for a in frames if a.info["config_type"] == "IsolatedAtom"]
    assert [(len(a), a.symbols[0], a.info["REF_energy"]) for a in marked] == [(1, "H", -13.6)]
    assert len(frames) == 1 + len(read_labelled_frames(here / "none.extxyz")) - sum(
        f.info["split"] != "train" for f in read_labelled_frames(here / "none.extxyz")
    )
    add_atom(own_copy, 8, -2040.0)
    result = export(own_copy, here / "all.extxyz", "--isolated-atoms")
    assert result.stderr == ""


def test_options_that_do_not_go_together(finished, here):
    for args, word in (
        (("x.h5", "--keys", "mace"), "extended XYZ"),
        (("x.db", "--isolated-atoms"), "extended XYZ"),
        (("x.extxyz", "--format", "ani"), "HDF5"),
        (("x.h5", "--format", "deepmd"), "without .h5"),
        (("x", "--format", "ani"), "HDF5"),
        (("x", "--format", "deepmd", "--ensemble"), "--ensemble"),
        (("x.db", "--ensemble"), "without .db"),
        (("x", "--split", "train"), "--split train is about labelled structures"),
        (("x", "--split", "train", "--ensemble"), "--split train is about labelled structures"),
        (("x.npz",), "--format deepmd"),
    ):
        result = hpcal("export", finished, *args)
        assert result.exit_code == 2, args
        assert word in result.stderr, args
        assert len(result.stderr.splitlines()) == 1
        assert not (here / args[0]).exists()


def test_data_never_take_the_place_of_a_campaign(own_copy, here):
    before = (own_copy / "store.db").read_bytes()
    (shard, *_) = (own_copy / "shards").iterdir()
    for out in (own_copy / "store.db", shard, own_copy / "models" / "x.extxyz"):
        result = hpcal("export", own_copy, out)
        assert result.exit_code == 2
        assert "belongs to the campaign itself" in result.stderr
    assert (own_copy / "store.db").read_bytes() == before
    other = here / "other.db"
    other.write_bytes(before)
    assert hpcal("export", own_copy, other).exit_code == 2
    assert other.read_bytes() == before
    (here / "folder.h5").mkdir()
    result = hpcal("export", own_copy, here / "folder.h5")
    assert result.exit_code == 2
    assert "is a folder" in result.stderr
    assert hpcal("export", own_copy, own_copy, "--format", "deepmd").exit_code == 2


FORMATS = [("a.extxyz",), ("a.h5",), ("a.h5", "--format", "ani"), ("a.db",), ("a", "--format", "deepmd")]


@pytest.mark.parametrize("args", FORMATS)
def test_a_place_that_cannot_be_written(finished, here, args):
    result = hpcal("export", finished, here / "none" / args[0], *args[1:])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (here / "none").exists()


FULL_DISK = """
import resource, signal, sys
from hpcal.cli import export
from hpcal.cli.main import cli

write = export._write

def limited(*args):  # the store is read by now, whose shared memory is a file too
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    return write(*args)

export._write = limited
cli(sys.argv[1:], prog_name="hpcal")
"""


@pytest.mark.parametrize("args", FORMATS)
def test_a_disk_that_is_full_leaves_nothing(finished, here, args):
    """A limit on the size of files stands for a full disk."""
    out = here / "out"
    out.mkdir()
    command = [sys.executable, "-c", FULL_DISK, "export", finished, out / args[0], *args[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(out.iterdir()) == []
