"""The difference of two levels: both stand, or neither does; and it is no surface to move on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Noise, Rejection
from hpcal.core.settings import parse_yaml
from hpcal.core.structure import Structure, from_ase
from hpcal.engine.campaign import campaign_of, label_spec
from hpcal.engine.pairing import check_parts
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.labeling import isolated
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.delta import Delta, DeltaSettings, of_difference
from hpcal.labeling.make import make_labeler
from hpcal.labeling.xtb import XTB, XTBSettings
from hpcal.testing.labelers import check_labeler

LEVELS = {"target": {"labeler": "xtb"}, "base": {"labeler": "xtb", "method": "GFN1-xTB"}}
WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])


def difference() -> Delta:
    return Delta(DeltaSettings(**LEVELS))


def by(method: str, structure: Structure) -> Label:
    label = XTB(XTBSettings(method=method)).label(structure, Deadline())
    assert isinstance(label, Label)
    return label


def shaken(name: str, **kwargs: Any) -> Structure:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=3)
    return from_ase(atoms, **kwargs)


class Stand:
    """One of the two levels, which answers what it is told."""

    periodic = False

    def __init__(self, name: str, answer: Any, noise: Noise | None = None, audits: tuple[str, ...] = ()):
        self.level = LevelOfTheory(code="test", version="1", method=name, noise=noise)
        self.audits = audits
        self.asked = 0
        self._answer = answer

    def missing_elements(self, numbers):
        return tuple(z for z in numbers if z == (9 if self.level.method == "target" else 17))

    def label(self, structure, deadline):
        self.asked += 1
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def stood(target: Stand, base: Stand, checks: ChecksSettings | None = None) -> CheckedLabeler:
    stands = iter((target, base))
    settings = DeltaSettings(**LEVELS)
    policy = checks or ChecksSettings(audit_share=0)
    return CheckedLabeler(*Delta.compose(settings, lambda name, settings: next(stands), policy))


def answer(energy: float = 1.0, force: float = 0.0, **more: Any) -> Label:
    forces = np.zeros((3, 3))
    forces[:2, 0] = force, -force
    level = LevelOfTheory(code="test", version="1", method="any")
    return Label(**{"energy": energy, "forces": forces, "level": level, **more})


# ── What is subtracted ───────────────────────────────────────────────────────────────────────


def test_it_keeps_what_every_labeler_promises() -> None:
    check_labeler("delta", [shaken("CH3OH"), shaken("H2O")], settings=LEVELS)


def test_an_ion_has_the_difference_of_dipoles_about_one_point() -> None:
    structure = shaken("OH", charge=-1)
    moved = structure.with_positions(structure.positions + 3.0)
    for place in (structure, moved):
        label = difference().label(place, Deadline())
        target, base = by("GFN2-xTB", place), by("GFN1-xTB", place)
        assert isinstance(label, Label)
        assert label.energy == pytest.approx(target.energy - base.energy, abs=1e-9)
        assert label.forces == pytest.approx(target.forces - base.forces, abs=1e-9)
        assert label.dipole == pytest.approx(target.dipole - base.dipole, abs=1e-7)
        assert label.charges is None
    # One origin moved by d changes the dipole of an ion by -Qd.
    ion = answer(dipole=[1.0, 0, 0], dipole_origin=[0, 0, 0])
    same = replace(ion, dipole=np.array([1.0 - (-1) * 2.0, 0, 0]), dipole_origin=np.array([2.0, 0, 0]))
    charged = replace_charge(WATER)
    result = stood(Stand("target", ion), Stand("base", same)).label(charged, Deadline())
    assert isinstance(result, Label)
    assert result.dipole == pytest.approx(np.zeros(3), abs=1e-12)


def replace_charge(structure: Structure) -> Structure:
    return Structure(numbers=structure.numbers, positions=structure.positions, charge=-1, multiplicity=2)


@pytest.mark.slow
def test_a_crystal_has_the_difference_of_stresses() -> None:
    crystal = from_ase(bulk("Si"))
    label = difference().label(crystal, Deadline())
    assert isinstance(label, Label)
    expected = by("GFN2-xTB", crystal).stress - by("GFN1-xTB", crystal).stress
    assert label.stress == pytest.approx(expected, abs=1e-8)
    assert np.abs(expected).max() > 1e-3
    assert label.dipole is None


def test_the_level_is_both_records_and_noise_adds_in_quadrature() -> None:
    noisy = Noise(energy=3e-4, force=3e-3), Noise(energy=4e-4, force=4e-3)
    target, base = (
        Stand(name, answer(), noise) for name, noise in zip(("target", "base"), noisy, strict=True)
    )
    level = stood(target, base).level
    assert (level.code, level.method) == ("hpcal-delta", "target - base")
    assert level.settings["target"]["method"] == "target"
    assert level.noise is not None
    assert (level.noise.energy, level.noise.force) == pytest.approx((5e-4, 5e-3))
    assert stood(target, Stand("base", answer())).level.noise is None
    assert stood(target, Stand("base", answer())).level == level
    assert stood(base, target).level != level


def test_both_labels_are_kept() -> None:
    target = answer(5.0, diagnostics={"rung": 2, "basis_functions": 40}, qm_calls=4)
    base = answer(2.0, diagnostics={"gap": 1.0}, qm_calls=1)
    label = stood(Stand("target", target), Stand("base", base)).label(WATER, Deadline())
    assert isinstance(label, Label)
    assert (label.energy, label.qm_calls) == (3.0, 5)
    kept = label.diagnostics
    assert (kept["target"]["rung"], kept["target"]["energy_eV"], kept["target"]["qm_calls"]) == (2, 5.0, 4)
    assert (kept["base"]["gap"], kept["base"]["level"]) == (1.0, "any (test)")
    assert kept["base"]["checks"]["net_force"]["passed"]
    assert kept["basis_functions"] == 40


def test_energies_alone_are_subtracted_where_one_has_no_forces() -> None:
    alone = replace(answer(5.0), forces=None)
    label = stood(Stand("target", alone), Stand("base", answer(2.0, 1.0))).label(WATER, Deadline())
    assert isinstance(label, Label)
    assert (label.energy, label.forces) == (3.0, None)


# ── Checks and ends ──────────────────────────────────────────────────────────────────────────


def test_both_labels_pass_the_checks_however_small_their_difference() -> None:
    huge = answer(force=60.0)
    result = stood(Stand("target", huge), Stand("base", huge)).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.diagnostics["rejected_level"]) == ("force_limit", "base")


def test_a_difference_of_labels_within_their_limits_is_never_refused() -> None:
    """Forces of 49 eV/Å and net forces of 9 meV/Å, opposite in direction."""
    forces = np.zeros((3, 3))
    forces[:, 0] = 49.0, -48.991, 0.0
    target, base = replace(answer(), forces=forces), replace(answer(), forces=-forces)
    label = stood(Stand("target", target), Stand("base", base)).label(WATER, Deadline())
    assert isinstance(label, Label)
    assert np.abs(label.forces).max() == 98.0
    checks = of_difference(ChecksSettings(max_force_eV_per_A=7.0, min_distance_factor=0.5))
    assert (checks.max_force_eV_per_A, checks.min_distance_factor) == (14.0, 0.5)


def refusal(code: str) -> Rejection:
    return Rejection(failure_class=FailureClass.PHYSICS, code=code, message="no", qm_calls=2, quarantine=True)


def test_a_rejection_by_either_is_the_rejection_and_says_whose() -> None:
    target = Stand("target", answer())
    result = stood(target, Stand("base", refusal("scf_not_converged"))).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.quarantine, target.asked) == ("scf_not_converged", True, 0)
    assert result.message == "base of the difference, base (test): no"
    result = stood(Stand("target", refusal("wrong_state")), Stand("base", answer())).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.qm_calls, result.diagnostics["rejected_level"]) == (
        "wrong_state",
        3,
        "target",
    )
    assert result.diagnostics["base"]["energy_eV"] == 1.0


def test_a_failure_keeps_its_class_and_says_whose_it_is() -> None:
    broken = Stand("target", TaskFailure(FailureClass.NODE, "disk full"))
    with pytest.raises(TaskFailure, match="target of the difference: disk full") as caught:
        stood(broken, Stand("base", answer())).label(WATER, Deadline())
    assert caught.value.failure_class is FailureClass.NODE


def test_elements_and_boundaries_are_those_of_both() -> None:
    labeler = stood(Stand("target", answer()), Stand("base", answer()))
    assert labeler.missing_elements([1, 9, 17]) == (9, 17)
    molecular = {"labeler": "pyscf", "method": "hf", "basis": "sto-3g"}
    assert difference().periodic
    assert not Delta(DeltaSettings(target=molecular, base={"labeler": "xtb"})).periodic


def test_each_level_gets_the_audits_that_it_offers() -> None:
    checks = ChecksSettings(audit_share=1, audits=("finite_difference",))
    flat = Stand("target", answer(), audits=("finite_difference",))
    label = stood(flat, Stand("base", answer()), checks).label(WATER, Deadline())
    assert isinstance(label, Label)
    assert label.diagnostics["target"]["audits"]["finite_difference"]["passed"]
    assert "audits" not in label.diagnostics["base"]
    assert "audits" not in label.diagnostics
    with pytest.raises(ConfigurationError, match="neither target nor base has an audit t1"):
        stood(flat, flat, ChecksSettings(audits=("t1",)))


# ── In a file ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_threads_and_memory_reach_both_children(monkeypatch, tmp_path: Path) -> None:
    given = []
    monkeypatch.setattr(
        isolated,
        "hello",
        lambda name, settings, memory: given.append((name, memory)) or original(name, settings, memory),
    )
    with make_labeler("delta", LEVELS, threads=3, memory_MB=4000, log=tmp_path / "log") as labeler:
        label = labeler.label(WATER, Deadline.after(60))
        assert isinstance(label, Label)
        assert given == [("xtb", 4000), ("xtb", 4000)]
        children = [labeler._labeler._target._labeler, labeler._labeler._base._labeler]
        for child in children:
            environment = Path(f"/proc/{child.pid}/environ").read_bytes()
            assert b"OMP_NUM_THREADS=3\0" in environment
    assert [child.pid for child in children] == [None, None]


original = isolated.hello


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{labeler: delta, target: {labeler: xtb}}", "base: this key is missing"),
        (
            "{labeler: delta, target: {labeler: xtb, methd: x}, base: {labeler: xtb}}",
            "target: labeler xtb: methd: unknown key; did you mean 'method'?",
        ),
        ("{labeler: delta, target: {labeler: xbt}, base: {labeler: xtb}}", "did you mean 'xtb'?"),
        ("{labeler: delta, target: {}, base: {labeler: xtb}}", "target: key `labeler` is missing"),
        ("{labeler: delta, target: {labeler: delta}, base: {labeler: xtb}}", "other than delta"),
    ],
)
def test_a_fault_of_a_level_is_told_by_its_key(text, told) -> None:
    with pytest.raises(ConfigurationError) as caught:
        label_spec(parse_yaml(text, "label.yaml"), (), Path())
    assert told in str(caught.value)


def test_paths_of_a_level_are_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    write_labelled(
        tmp_path / "known.extxyz", [LabelledFrame(structure=WATER, label=by("GFN2-xTB", WATER), info={})]
    )
    text = "{labeler: delta, target: {labeler: lookup, file: known.extxyz}, base: {labeler: xtb}}"
    spec = label_spec(parse_yaml(text, "label.yaml"), (), tmp_path)
    label = spec.part.build().label(WATER, Deadline())
    assert isinstance(label, Label)
    assert abs(label.energy) < 1e-6


def campaign(label: str, structures: str = '{smiles: "O"}'):
    text = f"""
name: two
structures: {structures}
label: {label}
potential: {{kind: morse, members: 2}}
bootstrap: [{{sampler: random_displacement, count: 4}}]
sampling: [{{sampler: langevin, walkers: 2, time_ps: 0.01, temperature_K: 300}}]
stop: {{labels: 4}}
"""
    return campaign_of(parse_yaml(text, "c.yaml"), Path("/f"))


def test_no_campaign_moves_on_a_difference() -> None:
    block = "{labeler: delta, target: {labeler: xtb}, base: {labeler: xtb, method: GFN1-xTB}}"
    with pytest.raises(ConfigurationError, match=r"label\.labeler: delta .* no walker of langevin can move"):
        check_parts(campaign(block))
    with pytest.raises(ConfigurationError, match=r"structures\.level\.labeler: delta .* no minima"):
        check_parts(campaign("{labeler: xtb}", f'{{smiles: "O", level: {block}}}'))
    with pytest.raises(ConfigurationError, match="gives no forces to screen by"):
        campaign(f"{{labeler: xtb, screen: {block}}}")
    check_parts(campaign("{labeler: xtb}"))
