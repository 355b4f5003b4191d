"""A cheap level turns away what is not worth an expensive one, and says by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, InputError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.settings import parse_yaml
from hpcal.core.structure import Structure
from hpcal.engine.campaign import campaign_of
from hpcal.engine.pairing import check_structures
from hpcal.engine.work.quantum import close_labelers, labeler_of
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.screen import SCREENING, Screen, ScreenedLabeler, ScreenSettings

WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])
SQUEEZED = WATER.with_positions(np.array([[0, 0, 0], [0, 0, 0.7], [0.93, 0, -0.24]]))
NO_AUDIT = ChecksSettings(audit_share=0)


class Spring:
    """Pulls the second atom along z with a force of its own choice; notes what it was asked."""

    periodic = True

    def __init__(self, name: str, force: float, answer: Callable[[], Any] | None = None, calls: int = 1):
        self.level = LevelOfTheory(code="test", version="1", method=name)
        self.asked: list[Structure] = []
        self.closed = False
        self._force, self._answer, self._calls = force, answer, calls

    def missing_elements(self, numbers):
        return ()

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        self.asked.append(structure)
        if self._answer is not None:
            return self._answer()
        forces = np.zeros((len(structure), 3))
        forces[:2, 2] = -self._force, self._force
        energy = -self._force * (structure.positions[1, 2] - structure.positions[0, 2])
        return Label(energy=energy, forces=forces, level=self.level, qm_calls=self._calls)

    def close(self) -> None:
        self.closed = True


def screened(
    cheap: Spring, dear: Spring, checks: ChecksSettings = NO_AUDIT, **policy: Any
) -> ScreenedLabeler:
    return ScreenedLabeler(
        CheckedLabeler(dear, checks), checks, CheckedLabeler(cheap, SCREENING), ScreenSettings(**policy)
    )


def fails(failure_class: FailureClass) -> Callable[[], Any]:
    def answer() -> Any:
        raise TaskFailure(failure_class, "it fell over")

    return answer


def rejects() -> Rejection:
    return Rejection(
        failure_class=FailureClass.PHYSICS, code="scf_not_converged", message="250 iterations", qm_calls=3
    )


def test_a_force_above_the_limit_spares_the_expensive_level() -> None:
    cheap, dear = Spring("cheap", 20.5, calls=2), Spring("dear", 1.0)
    result = screened(cheap, dear).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert (result.failure_class, result.code, result.qm_calls) == (FailureClass.PHYSICS, "screened", 2)
    assert "20.5 eV/Å" in result.message
    assert "max_force_eV_per_A 20:" in result.message
    assert not dear.asked
    assert result.diagnostics["screen"]["largest_force_eV_per_A"] == pytest.approx(20.5)


def test_a_label_keeps_what_the_screening_saw() -> None:
    cheap, dear = Spring("cheap", 19.5, calls=2), Spring("dear", 1.0, calls=5)
    result = screened(cheap, dear).label(WATER, Deadline())
    assert isinstance(result, Label)
    assert result.level == dear.level
    assert result.qm_calls == 7
    seen = dict(result.diagnostics["screen"])
    seconds = seen.pop("seconds")
    assert seen == {
        "level": "cheap (test)", "largest_force_eV_per_A": 19.5, "limit_eV_per_A": 20.0,
    }  # fmt: skip
    assert 0 < seconds <= result.diagnostics["seconds"]
    assert result.diagnostics["checks"]["force_limit"]["value"] == 1.0


@pytest.mark.parametrize("answer", [rejects, fails(FailureClass.PHYSICS)])
def test_what_the_cheap_level_rejects_goes_by_policy(answer) -> None:
    cheap, dear = Spring("cheap", 0, answer), Spring("dear", 1.0)
    labelled = screened(cheap, dear).label(WATER, Deadline())
    assert isinstance(labelled, Label)
    code = labelled.diagnostics["screen"]["rejected"]
    assert code == ("scf_not_converged" if answer is rejects else "failed")
    refused = screened(cheap, dear, on_rejection="reject").label(WATER, Deadline())
    assert isinstance(refused, Rejection)
    assert (refused.code, len(dear.asked)) == ("screened", 1)
    assert code in refused.message


def test_forces_that_are_no_numbers_never_pass_as_small() -> None:
    refused = screened(Spring("cheap", np.nan), Spring("dear", 1.0), on_rejection="reject")
    result = refused.label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert result.diagnostics["screen"]["rejected"] == "not_finite"


@pytest.mark.parametrize("failure_class", [FailureClass.RESOURCE, FailureClass.NODE, FailureClass.BUG])
def test_a_screening_that_breaks_judges_nothing(failure_class) -> None:
    dear = Spring("dear", 1.0)
    with pytest.raises(TaskFailure) as caught:
        screened(Spring("cheap", 0, fails(failure_class)), dear).label(WATER, Deadline())
    assert caught.value.failure_class is failure_class
    assert not dear.asked


def test_what_fails_the_checks_before_is_refused_by_them_and_not_screened() -> None:
    cheap, dear = Spring("cheap", 100.0), Spring("dear", 1.0)
    close = WATER.with_positions(np.array([[0, 0, 0], [0, 0, 0.3], [0.93, 0, -0.24]]))
    result = screened(cheap, dear).label(close, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("overlap", FailureClass.INPUT)
    assert not cheap.asked


def test_a_rejection_of_the_expensive_level_counts_the_screening() -> None:
    result = screened(Spring("cheap", 1.0), Spring("dear", 0, rejects)).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.qm_calls) == ("scf_not_converged", 4)
    assert result.diagnostics["screen"]["largest_force_eV_per_A"] == 1.0


def test_displacements_of_an_audit_are_not_screened() -> None:
    """A structure just below the limit must not fail its audit for a displacement above it."""
    cheap, dear = Spring("cheap", 1.0), Spring("dear", 1.0)
    dear.audits = (FINITE_DIFFERENCE,)  # type: ignore[attr-defined]
    result = screened(cheap, dear, ChecksSettings(audit_share=1)).label(WATER, Deadline())
    assert isinstance(result, Label)
    assert result.diagnostics["audits"][FINITE_DIFFERENCE]["passed"]
    assert (len(cheap.asked), len(dear.asked)) == (1, 3)


def test_a_level_without_forces_cannot_screen() -> None:
    energy_only = Spring("cheap", 0)
    energy_only._answer = lambda: Label(energy=0.0, forces=None, level=energy_only.level)
    with pytest.raises(TaskFailure, match=r"label\.screen: cheap \(test\) gives no forces"):
        screened(energy_only, Spring("dear", 1.0)).label(WATER, Deadline())


def test_both_are_closed() -> None:
    cheap, dear = Spring("cheap", 1.0), Spring("dear", 1.0)
    with screened(cheap, dear):
        pass
    assert cheap.closed
    assert dear.closed


# ── In a file ────────────────────────────────────────────────────────────────────────────────

CAMPAIGN = """
name: two
structures: {{smiles: "O"}}
label: {{labeler: xtb, method: GFN2-xTB, screen: {screen}}}
potential: {{kind: morse, members: 2}}
bootstrap: [{{sampler: random_displacement, count: 4}}]
sampling: [{{sampler: langevin, walkers: 2, time_ps: 0.01, temperature_K: 300}}]
stop: {{labels: 4}}
{more}
"""


def campaign(screen: str, more: str = ""):
    return campaign_of(parse_yaml(CAMPAIGN.format(screen=screen, more=more), "c.yaml"), Path("/f"))


def test_the_key_is_read_and_relaxations_go_without() -> None:
    spec = campaign("{labeler: xtb, method: GFN1-xTB, max_force_eV_per_A: 12}")
    record = spec.label.as_dict()
    assert Screen.of(record["screen"]) == spec.label.screen
    assert record["screen"]["policy"]["max_force_eV_per_A"] == 12
    assert spec.seed_level.screen is None
    assert "screen" not in spec.seed_level.as_dict()


@pytest.mark.slow
def test_a_worker_screens_labels_and_not_relaxations(tmp_path: Path) -> None:
    spec = campaign("{labeler: xtb, method: GFN1-xTB, max_force_eV_per_A: 12}")
    try:
        labeler = labeler_of(spec.label.as_dict(), 1, tmp_path / "log")
        kept, refused = (labeler.label(s, Deadline.after(60)) for s in (WATER, SQUEEZED))
        assert isinstance(kept, Label)
        assert isinstance(refused, Rejection)
        assert (str(kept.level), kept.qm_calls) == ("GFN2-xTB (tblite)", 2)
        assert kept.diagnostics["screen"]["level"] == "GFN1-xTB (tblite)"
        assert refused.code == "screened"
        relaxing = labeler_of(spec.seed_level.as_dict(), 1, tmp_path / "log")
        assert isinstance(relaxing.label(SQUEEZED, Deadline.after(60)), Label)
    finally:
        close_labelers()


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        ("{labeler: xtb, max_forces: 3}", "", "c.yaml:4: label.screen.max_forces: unknown key"),
        ("{labeler: xtb, max_force_eV_per_A: -1}", "", "label.screen.max_force_eV_per_A: "),
        ("{method: GFN2-xTB}", "", "label.screen: labeler: this key is missing"),
        ("xtb", "", "label.screen: name a labeler and its settings"),
    ],
)
def test_a_fault_in_the_key_names_its_line(text, more, told) -> None:
    with pytest.raises(ConfigurationError) as caught:
        campaign(text, more)
    assert told in str(caught.value)


def test_relaxations_take_no_screen() -> None:
    document = parse_yaml(
        CAMPAIGN.replace('{{smiles: "O"}}', '{{smiles: "O", level: {{labeler: xtb, screen: {{}}}}}}').format(
            screen="{labeler: xtb}", more=""
        ),
        "c.yaml",
    )
    with pytest.raises(ConfigurationError, match=r"structures\.level\.screen: unknown key"):
        campaign_of(document, Path("/f"))


def test_a_level_that_cannot_screen_the_structures_is_refused_at_load() -> None:
    spec = campaign("{labeler: xtb}")
    radium = Structure(numbers=[88], positions=[[0, 0, 0]])
    with pytest.raises(InputError, match=r"label\.screen: xtb \(GFN2-xTB \(tblite\)\) does not cover Ra"):
        check_structures(spec, Spring("dear", 1.0), [radium])
    hartree_fock = {"name": "pyscf", "settings": {"method": "hf", "basis": "sto-3g"}, "policy": {}}
    molecular = Screen.of(hartree_fock)
    crystal = Structure(numbers=[2], positions=[[0, 0, 0]], cell=5 * np.eye(3), pbc=(True, True, True))
    with pytest.raises(InputError, match="takes molecules only and a structure is periodic"):
        molecular.check_coverage([crystal])
