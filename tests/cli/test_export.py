"""What comes out of a campaign: data sets and ensembles, and what they are worth."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from cli.helpers import hpcal

from hpcal.core.ensemble import EnsembleManifest, verify
from hpcal.exchange.extxyz import read_labelled_frames
from hpcal.exchange.files import read_dataset


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
    found = json.loads(hpcal("evaluate", finished, "all.h5", "--split", "validation", "--json").stdout)
    assert found["count"] == int((read_dataset(here / "all.h5").splits == "validation").sum())


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
