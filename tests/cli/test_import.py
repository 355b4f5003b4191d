"""``hpcal import``: says what files hold, converts them, and refuses what cannot be right."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import hpcal
from exchange import molecules
from exchange.data import made_up
from exchange.molecules import water

from hpcal.core.label import LevelOfTheory
from hpcal.core.units import HARTREE, KCAL_PER_MOL
from hpcal.exchange.files import read_dataset, read_structures
from hpcal.exchange.found import is_unknown
from hpcal.exchange.hdf5 import write_shard

FRAMES = water(60, scale=0.06)
LEVEL = LevelOfTheory(code="orca", version="4.2", method="PBE", settings={"basis": "def2-SVP"})


def imported(*args: object) -> str:
    result = hpcal("import", *args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*args: object) -> str:
    result = hpcal("import", *args)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    return molecules.npz(tmp_path / "a.npz", FRAMES)


def test_without_a_destination_it_says_what_it_found(npz: Path) -> None:
    before = sorted(npz.parent.iterdir())
    text = imported(npz)
    for words in (
        "a.npz: npz",
        "60 (H2O 60)",
        "60 with energy, 60 with forces, 0 with stress",
        "kcal/mol, Å, kcal/mol/Å (known of the format)",
        "PBE/def2-SVP (rMD17) (known of the format)",
        "energies and forces agree: ratio 1",
    ):
        assert words in text
    assert sorted(npz.parent.iterdir()) == before


def test_json_says_the_same(npz: Path, tmp_path: Path) -> None:
    other = molecules.extxyz(tmp_path / "b.xyz", water(3))
    found = json.loads(imported(npz, other, "--json"))
    first, second = found["files"]
    assert first["counts"]["formulas"] == {"H2O": 60}
    assert first["counts"]["elements"] == ["H", "O"]
    assert first["units"]["energy"] == "kcal/mol"
    assert first["levels"][0]["method"] == "PBE"
    assert first["consistency"]["pairs"] >= 15
    assert (second["levels"], second["level_source"]) == ([], "unknown")
    assert second["consistency"]["interval"] is None
    assert (found["destination"], found["imported"]) == (None, None)


@pytest.mark.parametrize("name", ["out.h5", "out.extxyz"])
def test_conversion_into_units_of_hpcal(npz: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    text = imported(npz, "--to", out, "--level", "orca 4.2 PBE/def2-SVP", "--split", "validation")
    assert f"{out}: 60 labelled, 0 unlabelled" in text
    dataset = read_dataset(out)
    np.testing.assert_allclose(dataset.energies, FRAMES.energies, rtol=0, atol=1e-8)
    np.testing.assert_allclose(dataset.forces, FRAMES.forces.reshape(-1, 3), atol=1e-10)
    assert dataset.level == LEVEL
    assert set(dataset.splits) == {"validation"}


def test_an_unknown_level_stays_unknown(tmp_path: Path) -> None:
    source = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    imported(source, "--to", tmp_path / "out.h5")
    assert read_dataset(tmp_path / "out.h5").level is None
    assert is_unknown(read_dataset(source).level)


def test_several_files_become_one(tmp_path: Path) -> None:
    one = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    two = molecules.database(tmp_path / "b.db", water(5))
    imported(one, two, "--to", tmp_path / "out.h5", "--level", "orca 4.2 PBE/def2-SVP")
    assert len(read_dataset(tmp_path / "out.h5")) == 65


def test_all_files_are_read_before_anything_is_written(npz: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(npz.read_bytes()[:-400])
    out = tmp_path / "out.h5"
    out.write_text("what was there")
    assert "bad.npz" in refused(npz, bad, "--to", out)
    assert out.read_text() == "what was there"
    assert not list(tmp_path.glob(".*"))


def test_wrong_units_and_signs_are_refused_unless_taken_as_they_are(npz: Path, tmp_path: Path) -> None:
    said = refused(npz, "--force-unit", "eV/Å")
    assert "--force-unit kcal/mol/Å (instead of eV/Å)" in said
    assert "give --forces" in refused(npz, "--gradient")
    out = tmp_path / "out.h5"
    text = imported(npz, "--gradient", "--no-consistency-check", "--to", out)
    assert "do not agree" in text
    np.testing.assert_allclose(read_dataset(out).forces, -FRAMES.forces.reshape(-1, 3), atol=1e-10)


def test_an_ambiguous_file_names_the_options(npz: Path, tmp_path: Path) -> None:
    bare = molecules.npz(tmp_path / "b.npz", FRAMES, old_indices=None)
    said = refused(bare)
    assert "--energy-unit" in said
    assert "--length-unit" in said
    text = imported(bare, "--energy-unit", "kcal", "--length-unit", "Ang")
    assert "kcal/mol, Å, kcal/mol/Å (given)" in text
    assert "unknown unit of energy 'calories'; known: eV, Hartree" in refused(
        bare, "--energy-unit", "calories"
    )
    assert "write energy/length" in refused(bare, "--force-unit", "newton")


def test_structures_without_labels(tmp_path: Path) -> None:
    plain = tmp_path / "plain.xyz"
    plain.write_text("3\nwater, as drawn = 1\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    text = imported(plain, "--to", tmp_path / "out.extxyz")
    assert "0 labelled, 1 unlabelled" in text
    assert read_structures(tmp_path / "out.extxyz") == read_structures(plain)
    assert "labelled structures only" in refused(plain, "--to", tmp_path / "out.h5")
    labelled = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    assert "1 of 61 structures have no label" in refused(labelled, plain, "--to", tmp_path / "b.extxyz")
    assert "plain.xyz holds no labelled structure" in refused(labelled, plain, "--labelled-only")
    labelled.write_text(labelled.read_text() + plain.read_text())
    imported(labelled, "--to", tmp_path / "c.h5", "--labelled-only")
    assert len(read_dataset(tmp_path / "c.h5")) == 60


def test_odd_electrons_name_the_options(tmp_path: Path) -> None:
    radical = tmp_path / "oh.xyz"
    radical.write_text("2\n\nO 0 0 0\nH 0 0 1\n")
    said = refused(radical)
    assert "frame 1: HO with charge 0 has 9 electrons" in said
    assert "--multiplicity" in said
    for args in (("--multiplicity", "2"), ("--multiplicity", "lowest"), ("--charge", "-1")):
        assert "1 (HO 1)" in imported(radical, *args)
    assert "must be a number from 1, or lowest" in refused(radical, "--multiplicity", "0")


def test_levels_as_text_and_as_file(npz: Path, tmp_path: Path) -> None:
    record = json.loads(imported(npz, "--json", "--level", "orca 4.2 PBE/def2-SVP grid=7 scf=VeryTight"))
    level = record["files"][0]["levels"][0]
    assert level == {
        "code": "orca",
        "version": "4.2",
        "method": "PBE",
        "settings": {"basis": "def2-SVP", "grid": 7, "scf": "VeryTight"},
    }
    yaml = tmp_path / "level.yaml"
    yaml.write_text("code: orca\nversion: '4.2'\nmethod: PBE\nsettings: {basis: def2-SVP}\n")
    assert json.loads(imported(npz, "--json", "--level", yaml))["files"][0]["levels"] == [LEVEL.as_dict()]
    assert "must be CODE VERSION METHOD" in refused(npz, "--level", "PBE/def2-SVP")
    yaml.write_text("method: PBE\n")
    assert "has the keys code, version, method" in refused(npz, "--level", yaml)
    assert "no such file" in refused(npz, "--level", "nowhere.yaml")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--to", "out.csv"), "neither the folder of a campaign nor a file whose name ends in .extxyz"),
        (("--to", "a.npz"), "neither the folder of a campaign"),
        (("--to", "nowhere/out.h5"), "cannot be written"),
    ],
)
def test_destinations_that_do_not_fit(
    npz: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(npz.parent)
    before = npz.read_bytes()
    assert words in refused("a.npz", *args)
    assert npz.read_bytes() == before


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    assert "is what is read" in refused(path, "--to", path)


def test_an_unknown_split_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", water(2), "split=holdout")
    assert "frame 1: unknown split 'holdout'" in refused(path)
    assert "no such file" in refused(tmp_path / "none.xyz")
    assert "is not one that is read" in refused(tmp_path / "none.cif")
    assert hpcal("import").exit_code == 2


@pytest.mark.parametrize("true", [KCAL_PER_MOL, HARTREE, KCAL_PER_MOL / 4.184, 1.0])
def test_a_wrong_unit_of_energies_and_forces_alike_is_refused(tmp_path: Path, true: float) -> None:
    """Energies and forces agree in any unit; what total energies of the atoms are tells which."""
    names = {"eV": 1.0, "Hartree": HARTREE, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KCAL_PER_MOL / 4.184}
    path = tmp_path / "a.npz"
    np.savez(path, z=molecules.NUMBERS, R=FRAMES.positions, E=FRAMES.energies / true, F=FRAMES.forces / true)
    for name, factor in names.items():
        options = (path, "--energy-unit", name, "--length-unit", "Å")
        if factor == true:
            assert "energies and forces agree" in imported(*options)
        else:
            assert "give --energy-unit" in refused(*options)
            imported(*options, "--no-consistency-check")


def test_random_forces_are_not_said_to_agree(tmp_path: Path) -> None:
    forces = np.random.default_rng(1).normal(size=FRAMES.forces.shape)
    path = molecules.extxyz(tmp_path / "a.xyz", molecules.Frames(FRAMES.positions, FRAMES.energies, forces))
    text = imported(path)
    assert "cannot be told" in text
    assert "forces agree:" not in text


def test_a_level_can_be_given_to_what_was_converted_without_one(tmp_path: Path) -> None:
    source = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    out = tmp_path / "out.extxyz"
    imported(source, "--to", out)
    assert "level=" not in out.read_text()
    imported(out, "--level", "orca 4.2 PBE/def2-SVP", "--to", tmp_path / "b.h5")
    assert read_dataset(tmp_path / "b.h5").level == LEVEL


def test_hpcal_files_keep_what_is_known_of_structures(tmp_path: Path) -> None:
    dataset = replace(made_up(9), hashes=None)
    write_shard(tmp_path / "a.h5", dataset)
    imported(tmp_path / "a.h5", "--to", tmp_path / "b.h5", "--no-consistency-check")
    again = read_dataset(tmp_path / "b.h5")
    for name in ("ids", "generations", "uncertainties", "origins", "splits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name), err_msg=name)
    assert "it is in eV, not Hartree" in refused(tmp_path / "a.h5", "--energy-unit", "Hartree")
    assert "--forces-key names nothing" in refused(tmp_path / "a.h5", "--forces-key", "forces")
    out = tmp_path / "c.h5"
    imported(tmp_path / "a.h5", "--gradient", "--no-consistency-check", "--to", out)
    np.testing.assert_array_equal(read_dataset(out).forces, -dataset.forces)


def test_keys_that_look_like_labels_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("2\nProperties=species:S:1:pos:R:3 free_energy=-31.0\nH 0 0 0\nH 0 0 0.74\n")
    assert "although it holds free_energy" in refused(path)
    assert "0 with energy" in imported(path, "--accept-unlabelled")
    assert "1 with energy" in imported(path, "--energy-key", "free_energy")


def test_lowest_is_noted_of_single_atoms(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("1\n\nO 0 0 0\n")
    assert "note: --multiplicity lowest applies to single atoms" in imported(path, "--multiplicity", "lowest")


# ── Into a campaign ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Adopted:
    labelled: int
    unlabelled: int
    duplicates: int
    other_level: int


@pytest.fixture
def adopt(monkeypatch: pytest.MonkeyPatch) -> list:
    """Stands for ``hpcal.engine.adopt``: keeps what it was called with."""
    calls: list = []

    def import_found(root, found, *, accept_unlabelled):
        calls.append((root, found, accept_unlabelled))
        return Adopted(sum(item.counts.energies for item in found), 0, 2, 1)

    module = types.ModuleType("hpcal.engine.adopt")
    module.import_found = import_found
    monkeypatch.setitem(sys.modules, "hpcal.engine.adopt", module)
    return calls


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir()
    sqlite3.connect(root / "store.db").close()
    return root


def test_a_campaign_is_given_what_was_found(npz: Path, campaign: Path, adopt: list) -> None:
    text = imported(npz, "--to", campaign, "--level", "orca 4.2 PBE/def2-SVP")
    assert "60 labelled, 0 unlabelled, 2 duplicates, 1 other level" in text
    ((root, found, accept_unlabelled),) = adopt
    assert (root, accept_unlabelled) == (campaign, False)
    assert [item.level for item in found] == [LEVEL]
    assert found[0].frames[0].label.energy == pytest.approx(FRAMES.energies[0])


def test_a_campaign_is_not_given_labels_of_an_unknown_level(
    tmp_path: Path, campaign: Path, adopt: list
) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    assert "give --level" in refused(path, "--to", campaign)
    assert adopt == []


def test_unlabelled_structures_enter_a_campaign_when_asked(
    tmp_path: Path, campaign: Path, adopt: list
) -> None:
    plain = tmp_path / "plain.xyz"
    plain.write_text("2\n\nH 0 0 0\nH 0 0 0.74\n")
    assert "--accept-unlabelled" in refused(plain, "--to", campaign)
    assert adopt == []
    imported(plain, "--to", campaign, "--accept-unlabelled")
    assert adopt[0][2] is True


@pytest.mark.skipif(importlib.util.find_spec("hpcal.engine.adopt") is None, reason="needs hpcal.engine.adopt")
def test_labels_of_a_file_in_a_campaign(own_copy: Path, here: Path) -> None:
    """Labels at the level of the campaign, exported, moved a little and brought back, are its own."""
    assert hpcal("export", own_copy, here / "all.h5").exit_code == 0
    text = imported(here / "all.h5", "--to", own_copy)
    count = len(read_dataset(here / "all.h5"))
    assert f"{count} duplicates" in text


# ── Published data ───────────────────────────────────────────────────────────────────────────


def test_published_data_become_one_unit(tmp_path: Path) -> None:
    source = molecules.SHARED / "rmd17" / "rmd17_ethanol_test_01.npz"
    if not source.exists():
        pytest.skip("needs rmd17 in ../shared/data")
    out = tmp_path / "ethanol.h5"
    imported(source, "--to", out, "--split", "test")
    with np.load(source) as arrays:
        np.testing.assert_allclose(read_dataset(out).energies, arrays["energies"] * KCAL_PER_MOL, rtol=1e-14)
    again = imported(out)
    assert "test 1000" in again
    assert "PBE/def2-SVP (rMD17) (stated by the file)" in again


def test_published_data_in_a_wrong_unit_are_refused_although_energies_and_forces_agree(
    tmp_path: Path,
) -> None:
    source = molecules.SHARED / "rmd17" / "rmd17_ethanol_test_01.npz"
    if not source.exists():
        pytest.skip("needs rmd17 in ../shared/data")
    with np.load(source) as arrays:
        bare = {k: arrays[k] for k in ("nuclear_charges", "coords", "energies", "forces")}
    path = tmp_path / "bare.npz"
    np.savez(path, **bare)
    options = ("--force-unit", "eV/A", "--length-unit", "A", "--level", "orca 4.2 PBE/def2-SVP")
    text = refused(path, "--energy-unit", "eV", *options)
    assert "in kcal/mol: give --energy-unit" in text
    imported(path, "--energy-unit", "kcal/mol", "--length-unit", "A", "--level", "orca 4.2 PBE/def2-SVP")
