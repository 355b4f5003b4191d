"""Each defect is planted in good data and found at its frame; good data have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report.good_data import AIMS, LEVEL, checked, collected, found, frames, kinds, relabelled, springs

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.examine import report_of
from hpcal.report.integrity.finding import Severity
from hpcal.report.integrity.outliers import fit_residuals
from hpcal.report.integrity.text import WIDTH, report_text


def turned(structure: Structure, seed: int = 0) -> Structure:
    """Rotated, mirrored, shifted, renumbered, and moved by less than the tolerance."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(structure))
    positions = structure.positions @ turn + 3.0 + rng.uniform(-4e-4, 4e-4, size=structure.positions.shape)
    return replace(structure, numbers=structure.numbers[order], positions=positions[order])


def test_good_data_have_nothing_wrong() -> None:
    splits = ["train" if k < 60 else "test" for k in range(80)]
    report = checked(frames(80), splits=splits, families=[100 + (k >= 60) for k in range(80)])
    assert not report.errors
    assert {f.kind for f in report.findings if f.severity is Severity.WARNING} <= {"pairs_never_seen"}


def test_a_rotated_copy_is_a_duplicate() -> None:
    pairs = frames(40)
    pairs[31] = (turned(pairs[7][0]), pairs[7][1])
    finding = found(checked(pairs), "duplicates")
    assert (finding.count, finding.severity) == (1, Severity.WARNING)
    assert finding.examples[0].where == (7, 31)
    assert "contradicting_energies" not in kinds(checked(pairs))


@pytest.mark.parametrize("copy", [turned, lambda structure: structure])
def test_one_geometry_with_two_energies_is_an_error(copy: object) -> None:
    pairs = frames(40)
    pairs[31] = (copy(pairs[7][0]), replace(pairs[7][1], energy=pairs[7][1].energy + 0.25))  # type: ignore[operator]
    report = checked(pairs)
    finding = found(report, "contradicting_energies")
    assert finding.severity is Severity.ERROR
    assert finding.examples[0].where == (7, 31)
    assert finding.examples[0].value == pytest.approx(0.25)
    assert "0.25 eV" in finding.examples[0].detail


def test_two_charge_states_of_one_geometry_are_no_contradiction() -> None:
    pairs = frames(40)
    ion = replace(pairs[7][0], charge=1, multiplicity=2)
    pairs[31] = (ion, replace(pairs[7][1], energy=pairs[7][1].energy + 9.0))
    report = checked(pairs)
    assert not report.errors
    assert found(report, "states_of_one_geometry").examples[0].where == (7, 31)
    assert "charge 0" in found(report, "states_of_one_composition").examples[0].detail


def test_leaks_between_splits() -> None:
    pairs = frames(60)
    splits = ["train" if k < 40 else "test" for k in range(60)]
    pairs[50] = (turned(pairs[4][0]), pairs[4][1])
    shift = np.random.default_rng(0).uniform(-0.004, 0.004, size=pairs[6][0].positions.shape)
    near = pairs[6][0].with_positions(pairs[6][0].positions + shift)
    pairs[52] = (near, pairs[6][1])
    report = checked(pairs, splits=splits)
    assert found(report, "leaked_geometries").severity is Severity.ERROR
    assert found(report, "leaked_geometries").examples[0].where == (4, 50)
    assert found(report, "leaked_near_duplicates").examples[0].where == (6, 52)
    assert found(report, "leaked_near_duplicates").count == 1
    assert 0 < found(report, "leaked_near_duplicates").examples[0].value < 0.02
    inside = checked(pairs, splits=["train"] * 60)
    assert not kinds(inside) & {"leaked_geometries", "leaked_near_duplicates"}


def test_frames_of_one_walker_in_two_splits() -> None:
    splits = ["train" if k < 40 else "test" for k in range(60)]
    families = [k // 10 for k in range(60)]
    families[45] = 2
    finding = found(checked(frames(60), splits=splits, families=families), "leaked_walkers")
    assert (finding.severity, finding.count) == (Severity.ERROR, 1)
    assert finding.examples[0].where == (20, 45)


def test_energies_that_stand_out() -> None:
    pairs = frames(80)
    pairs[13] = relabelled(pairs[13], energy=pairs[13][1].energy + 9 * 2.0)  # 2 eV an atom
    pairs[22] = relabelled(pairs[22], energy=pairs[22][1].energy / 27.2114)  # left in Hartree
    report = checked(pairs)
    assert found(report, "energy_outliers").severity is Severity.WARNING
    assert [e.where for e in found(report, "energy_outliers").examples] == [(13,)]
    assert found(report, "absurd_energies").severity is Severity.ERROR
    assert [e.where for e in found(report, "absurd_energies").examples] == [(22,)]
    assert found(report, "energy_outliers").examples[0].value == pytest.approx(
        18 / len(pairs[13][0]), abs=0.1
    )


def test_the_fit_of_the_composition_is_that_of_the_atoms() -> None:
    """Three molecules fix C, H and O; what is left of each energy an atom is the strain."""
    pairs = frames(90, names=("CH3CH2OH", "H2O", "CH4"))
    pairs[5] = relabelled(pairs[5], energy=0.0)  # does not pull the others along
    residual = fit_residuals(collected(pairs))
    others = np.delete(residual, 5)
    assert np.abs(others).max() < 0.15
    assert abs(residual[5]) > 100


def test_forces_that_stand_out() -> None:
    pairs = frames(60)
    large = pairs[9][1].forces.copy()
    large[0, 0] += 80.0
    large[1, 0] -= 80.0
    pairs[9] = relabelled(pairs[9], forces=large)
    pairs[11] = relabelled(pairs[11], forces=np.zeros_like(pairs[11][1].forces))
    report = checked(pairs)
    assert [e.where for e in found(report, "large_forces").examples] == [(9,)]
    assert [e.where for e in found(report, "zero_forces").examples] == [(11,)]
    assert found(report, "zero_forces").severity is Severity.ERROR


def test_net_force_and_torque_of_a_molecule() -> None:
    pairs = frames(60)
    pushed = pairs[17][1].forces + 0.05 / len(pairs[17][0])  # 0.087 eV/Å in all
    pairs[17] = relabelled(pairs[17], forces=pushed * 1.0)
    twisted = pairs[19][1].forces + np.cross([0, 0, 0.5], pairs[19][0].positions)
    twisted -= twisted.mean(axis=0)
    pairs[19] = relabelled(pairs[19], forces=twisted)
    report = checked(pairs)
    force, torque = found(report, "net_force"), found(report, "net_torque")
    assert [e.where for e in force.examples] == [(17,)]
    assert force.examples[0].value == pytest.approx(0.05 * 3**0.5)
    assert force.severity is Severity.WARNING
    assert torque.severity is Severity.ERROR
    assert (19,) in [e.where for e in torque.examples]
    gated = checked(pairs, aims=replace(AIMS, gated=True))
    assert found(gated, "net_force").severity is Severity.ERROR


def test_gradients_in_the_place_of_forces() -> None:
    pairs = frames(60)
    assert "forces_against_energies" not in kinds(checked(pairs))
    report = checked([relabelled(p, forces=-p[1].forces) for p in pairs])
    finding = found(report, "forces_against_energies")
    assert finding.severity is Severity.ERROR
    assert "gradients" in finding.examples[0].detail


def test_lengths_in_bohr() -> None:
    pairs = [(s.with_positions(s.positions / 0.529177), label) for s, label in frames(40)]
    assert found(checked(pairs), "lengths").severity is Severity.ERROR


def test_atoms_on_top_of_each_other() -> None:
    pairs = frames(40)
    positions = pairs[8][0].positions.copy()
    positions[3] = positions[0] + [0.0, 0.3, 0.0]
    pairs[8] = (pairs[8][0].with_positions(positions), pairs[8][1])
    finding = found(checked(pairs), "overlapping_atoms")
    assert finding.examples[0].where == (8,)
    assert "0.300 Å" in finding.examples[0].detail


def test_numbers_that_are_none() -> None:
    pairs = frames(40)
    pairs[3] = relabelled(pairs[3], energy=float("nan"))
    broken = pairs[5][1].forces.copy()
    broken[2, 1] = np.nan
    pairs[5] = relabelled(pairs[5], forces=broken)
    pairs[6] = relabelled(pairs[6], forces=None)  # a label without forces is no defect
    finding = found(checked(pairs), "not_finite")
    assert [e.where for e in finding.examples] == [(3,), (5,)]


def test_states_that_cannot_be() -> None:
    pairs = frames(40)
    pairs[12] = (replace(pairs[12][0], multiplicity=2), pairs[12][1])
    finding = found(checked(pairs), "impossible_states")
    assert finding.severity is Severity.ERROR
    assert [e.where for e in finding.examples] == [(12,)]


def test_levels_of_theory_that_are_mixed() -> None:
    pairs = frames(40)
    other = LevelOfTheory(code="spring", version="2", method="anharmonic")
    pairs[14] = relabelled(pairs[14], level=other)
    finding = found(checked(pairs), "mixed_levels")
    assert (finding.severity, finding.count) == (Severity.ERROR, 1)
    assert finding.examples[0].where == (14,)
    assert "anharmonic" in finding.examples[0].detail
    same = (pairs[14][0], replace(pairs[14][1], level=LEVEL, energy=pairs[14][1].energy + 3.0))
    assert "contradicting_energies" not in kinds(checked([*pairs, same]))


def test_files_are_splits_and_name_their_frames() -> None:
    first, second = frames(30, seed=1), frames(20, seed=2)
    second[4] = first[9]
    parts = [collected(first, source="a.xyz"), collected(second, source="b.xyz")]
    report = report_of(["a.xyz", "b.xyz"], Collection.joined(parts), AIMS)
    record = report.record()
    leak = next(f for f in record["findings"] if f["kind"] == "leaked_geometries")
    assert leak["examples"][0]["where"] == [{"file": "a.xyz", "frame": 10}, {"file": "b.xyz", "frame": 5}]
    assert "a.xyz, frame 10 and b.xyz, frame 5" in report_text(report)


def test_coverage_says_what_is_there() -> None:
    def dimer(distance: float) -> Structure:
        water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
        positions = np.concatenate([water, water + np.array([0.0, 0.0, distance])])
        return Structure(numbers=[8, 1, 1] * 2, positions=positions)

    structures = [dimer(d) for d in np.linspace(2.5, 6.0, 30)]
    pairs = [(s, springs(s, s.positions + 0.01 * s.positions[::-1])) for s in structures]
    report = checked(pairs, aims=replace(AIMS, cutoff=3.0))
    covered = report.coverage
    assert covered["contacts"]["structures_with_several_fragments"] == 30
    assert covered["contacts"]["shortest_between_fragments"] == pytest.approx(2.5)
    assert covered["size"]["largest_diameter"] == pytest.approx(
        max(np.linalg.norm(s.positions[:, None] - s.positions[None], axis=-1).max() for s in structures)
    )
    assert covered["elements"] == {
        "H": {"atoms": 120, "structures": 30},
        "O": {"atoms": 60, "structures": 30},
    }
    assert covered["pairs"]["seen"]["O-O"]["structures"] == sum(d <= 3.0 for d in np.linspace(2.5, 6.0, 30))
    assert covered["pairs"]["seen"]["H-O"]["shortest"] == pytest.approx(0.96, abs=1e-3)
    assert covered["states"] == [{"charge": 0, "multiplicity": 1, "structures": 30}]
    assert "no_contacts_between_molecules" not in kinds(report)
    assert "no_contacts_between_molecules" in kinds(checked(frames(20)))
    never = {example.detail for example in found(checked(frames(20)), "pairs_never_seen").examples}
    assert never == {"N-N", "N-O", "O-O"}  # one of each at the most; N and O of acetamide are 2.3 Å apart


def test_the_temperature_of_harmonic_frames_is_found() -> None:
    """3N − 6 = 3 modes of water at 400 K: energies of 1,500 frames; 5 standard errors of the quartiles."""
    rng = np.random.default_rng(3)
    k_t = 8.617333e-5 * 400
    water = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    pairs = [
        (
            water.with_positions(water.positions + rng.normal(size=(3, 3)) * 0.1),
            Label(energy=-76.0 + 0.5 * k_t * rng.chisquare(3), forces=None, level=LEVEL),
        )
        for _ in range(1500)
    ]
    expected = 400 * 0.5 * (4.108345 - 1.212533) / 1.349 * np.sqrt(2 / 3)  # χ²(3)
    spread = checked(pairs).coverage["energies"]["spread_temperature_K"]
    assert spread["mean"] == pytest.approx(expected, rel=0.15)


def test_periodic_frames() -> None:
    rng = np.random.default_rng(4)
    cell = np.diag([5.0, 5.2, 5.4])
    pairs = []
    for _ in range(25):
        positions = np.array([[0.0, 0, 0], [2.5, 2.6, 0], [2.5, 0, 2.7], [0, 2.6, 2.7]])
        positions = positions + rng.normal(size=(4, 3)) * 0.05
        structure = Structure(numbers=[13] * 4, positions=positions, cell=cell, pbc=(True,) * 3)
        forces = rng.normal(size=(4, 3))
        pairs.append((structure, Label(energy=-4.0 * 100 + rng.normal() * 0.1, forces=forces, level=LEVEL)))
    moved = np.roll(pairs[2][0].positions + np.array([1.0, 0.5, 6.0]), 1, axis=0)
    pairs[20] = (pairs[2][0].with_positions(moved), pairs[2][1])
    report = checked(pairs, splits=["train"] * 15 + ["test"] * 10)
    assert found(report, "leaked_geometries").examples[0].where == (2, 20)
    assert not kinds(report) & {"net_force", "net_torque", "zero_forces"}
    assert report.coverage["periodic"] == 25


def test_text_fits_a_terminal_and_examples_are_counted() -> None:
    pairs = frames(60)
    for k in range(10, 18):
        pairs[k] = relabelled(pairs[k], energy=pairs[k][1].energy + 20.0)
    report = checked(pairs, aims=replace(AIMS, limit=2))
    text = report_text(report)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "energy_outliers (8)" in text
    assert "and 6 more" in text
    assert "coverage" in text
    assert len(found(report, "energy_outliers").examples) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_composition_that_occurs_once_is_no_outlier_of_the_others(times: int) -> None:
    """Water's atoms are bound by 5 eV each, which a fit of H2 and O2 alone does not know."""

    def pair(numbers: list[int], energy: float, k: int) -> tuple[Structure, Label]:
        positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.9, 0.01 * k], [0.9, 0.0, 0.0]])[: len(numbers)]
        forces = np.random.default_rng(k).normal(size=positions.shape)
        structure = Structure(numbers=numbers, positions=positions)
        return structure, Label(energy=energy + 1e-4 * k, forces=forces - forces.mean(axis=0), level=LEVEL)

    pairs = [pair([1, 1], -30.0, k) for k in range(40)] + [pair([8, 8], -4000.0, k) for k in range(40)]
    pairs += [pair([8, 1, 1], -2030.0 - 15.0, k) for k in range(times)]
    assert ("energy_outliers" in kinds(checked(pairs))) == (times > 1)
