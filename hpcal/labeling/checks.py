"""The checks that every label passes, whoever made it.

Before the calculation: boundary conditions, elements, parity of electrons and spin, overlap of
atoms. After it: finite numbers of the right shape, convergence, net force, largest force, sum of
charges. A check that failed before the calculation is the input's fault (class ``input``), one
that failed after it is of class ``physics``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
from pydantic import Field

from hpcal.core.closing import Closing
from hpcal.core.deadline import Deadline
from hpcal.core.elements import COVALENT_RADII, symbol
from hpcal.core.errors import FailureClass
from hpcal.core.label import Audit, Label, LevelOfTheory, Rejection
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure, parity_problem, to_ase
from hpcal.labeling.audits import drawn, make_audit, offered_by
from hpcal.labeling.failures import as_failure

CHARGE_SUM_LIMIT: Final = 1e-3
"""e; partial charges have to add up to the total charge this closely."""


class ChecksSettings(Settings):
    """The block ``label.checks`` of a campaign."""

    min_distance_factor: float = Field(
        default=0.6,
        gt=0,
        lt=1,
        description="closest allowed distance of two atoms, in sums of their covalent radii",
    )
    overlap: Literal["refuse", "allow"] = Field(
        default="refuse", description="what to do with structures whose atoms are closer than that"
    )
    max_net_force_eV_per_A: float = Field(  # noqa: N815
        default=0.010,
        gt=0,
        description="largest length of the sum of all forces; it follows the error of a DFT grid",
    )
    max_force_eV_per_A: float = Field(  # noqa: N815
        default=50.0, gt=0, description="largest force on an atom"
    )
    max_spin_contamination: float = Field(
        default=0.1, gt=0, description="largest deviation of <S²> from S(S+1) of an accepted label"
    )
    reject_spin_contamination: float = Field(
        default=0.3, gt=0, description="deviation of <S²> above which a structure is not even kept aside"
    )
    audit_share: float = Field(
        default=0.02, ge=0, le=1, description="share of the labels that are audited by further calculations"
    )
    audits: tuple[str, ...] | None = Field(
        default=None,
        description="audits of those labels, such as finite_difference, other_guess, stability, fod or t1; "
        "default: the labeler's own choice",
    )


class LabelSource(Protocol):
    """What checks are put around: a labeler in this process or in a child process."""

    @property
    def level(self) -> LevelOfTheory: ...

    @property
    def periodic(self) -> bool: ...

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]: ...

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection: ...


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check that was made.

    Attributes:
        code: short stable name.
        passed: whether the structure or label may go on.
        problem: one sentence for a person, empty if passed.
        value: what was found, or None for checks without a number.
        limit: what is allowed, or None.
        quarantine: whether a structure that failed it is set aside for a person.
    """

    code: str
    passed: bool
    problem: str = ""
    value: float | None = None
    limit: float | None = None
    quarantine: bool = False

    def record(self) -> dict[str, Any]:
        """What a label keeps of it."""
        return {"value": self.value, "limit": self.limit, "passed": self.passed}


# ── Before the calculation ───────────────────────────────────────────────────────────────────


def parity(structure: Structure) -> Rejection | None:
    """The refusal of a charge and multiplicity that cannot go together, or None if they can."""
    check = _parity(structure)
    return None if check.passed else _rejection(check, FailureClass.INPUT)


def closest_contact(structure: Structure) -> tuple[float, tuple[int, int]] | None:
    """The smallest distance in sums of covalent radii, and its atoms; images included.

    None if no two atoms are closer than twice the sum of their radii.
    """
    radii = COVALENT_RADII[structure.numbers]
    if structure.periodic:
        from ase.neighborlist import neighbor_list

        first, second, distance = neighbor_list("ijd", to_ase(structure), (2 * radii).tolist())
        if len(first) == 0:
            return None
        ratio = distance / (radii[first] + radii[second])
    else:
        first, second = np.triu_indices(len(structure), k=1)
        if len(first) == 0:
            return None
        gap = structure.positions[first] - structure.positions[second]
        ratio = np.linalg.norm(gap, axis=1) / (radii[first] + radii[second])
    at = int(np.argmin(ratio))
    return None if ratio[at] >= 2 else (float(ratio[at]), (int(first[at]), int(second[at])))


def precheck(structure: Structure, labeler: LabelSource, settings: ChecksSettings) -> Rejection | None:
    """Why a structure must not be labelled, or None.

    Codes: ``periodic``, ``element``, ``no_electrons``, ``parity``, ``overlap``.
    """
    failed = _first_failed(_prechecks(structure, labeler, settings), [])
    return None if failed is None else _rejection(failed, FailureClass.INPUT)


def _prechecks(structure: Structure, labeler: LabelSource, settings: ChecksSettings) -> Iterator[Check]:
    yield Check(
        code="periodic",
        passed=labeler.periodic or not structure.periodic,
        problem=f"{structure.formula} is periodic, but {labeler.level} takes molecules only; use a "
        "periodic labeler such as xtb, or remove the cell",
    )
    missing = labeler.missing_elements(sorted({int(z) for z in structure.numbers}))
    yield Check(
        code="element",
        passed=not missing,
        problem=f"{labeler.level} has no parameters (basis set, ECP) for "
        f"{', '.join(symbol(z) for z in missing)} in {structure.formula}",
    )
    yield Check(
        code="no_electrons",
        passed=structure.electrons != 0,
        problem=f"{structure.formula} with charge {structure.charge} has no electrons",
    )
    yield _parity(structure)
    yield _overlap(structure, settings)


def _parity(structure: Structure) -> Check:
    problem = parity_problem(structure)
    return Check(code="parity", passed=problem is None, problem=problem or "")


def _overlap(structure: Structure, settings: ChecksSettings) -> Check:
    contact = closest_contact(structure)
    limit = settings.min_distance_factor
    if contact is None:
        return Check(code="overlap", passed=True, limit=limit)
    ratio, (a, b) = contact
    names = f"{symbol(int(structure.numbers[a]))}{a} and {symbol(int(structure.numbers[b]))}{b}"
    return Check(
        code="overlap",
        passed=ratio >= limit or settings.overlap == "allow",
        problem=f"atoms {names} overlap: their distance is {ratio:.2f} of the sum of their covalent "
        f"radii, below min_distance_factor {limit:g}",
        value=ratio,
        limit=limit,
    )


# ── After the calculation ────────────────────────────────────────────────────────────────────


def gate(structure: Structure, label: Label, settings: ChecksSettings) -> Rejection | None:
    """Why a label must not be accepted, or None.

    Codes: ``shape``, ``not_finite``, ``not_converged``, ``net_force``, ``force_limit``,
    ``charge_sum``, ``spin_contamination``.
    """
    failed = _first_failed(_gates(structure, label, settings), [])
    return None if failed is None else _rejection(failed, FailureClass.PHYSICS, label.qm_calls)


def _gates(structure: Structure, label: Label, settings: ChecksSettings) -> Iterator[Check]:
    yield _shape(structure, label)
    yield _finite(label)
    yield Check(
        code="not_converged",
        passed=bool(label.diagnostics.get("converged", True)),
        problem="the calculation says that it did not converge",
    )
    if label.forces is not None:
        yield _limited(
            "net_force",
            float(np.linalg.norm(label.forces.sum(axis=0))),
            settings.max_net_force_eV_per_A,
            "the forces do not add up to zero: |ΣF| = {value:.4f} eV/Å is above {limit:g} eV/Å; a finer "
            "grid or tighter convergence is needed",
        )
        yield _limited(
            "force_limit",
            float(np.linalg.norm(label.forces, axis=1).max()),
            settings.max_force_eV_per_A,
            "the largest force, {value:.1f} eV/Å, is above {limit:g} eV/Å",
        )
    if label.charges is not None:
        yield _limited(
            "charge_sum",
            abs(float(label.charges.sum()) - structure.charge),
            CHARGE_SUM_LIMIT,
            "the partial charges miss the total charge by {value:.2e} e (allowed: {limit:g} e)",
        )
    for scheme, charges in label.other_charges.items():
        yield _limited(
            f"charge_sum_{scheme}",
            abs(float(charges.sum()) - structure.charge),
            CHARGE_SUM_LIMIT,
            f"the {scheme} charges miss the total charge by {{value:.2e}} e (allowed: {{limit:g}} e)",
        )
    if "spin_contamination" in label.diagnostics and not label.diagnostics.get("broken_symmetry", False):
        yield _spin(structure, label, settings)


def _spin(structure: Structure, label: Label, settings: ChecksSettings) -> Check:
    """Contamination by other spin states; what breaks the symmetry of a singlet on purpose is none."""
    value = float(label.diagnostics["spin_contamination"])
    limit = settings.max_spin_contamination
    return Check(
        code="spin_contamination",
        passed=value <= limit,
        problem=f"<S²> of {structure.formula} with multiplicity {structure.multiplicity} is off by "
        f"{value:.3f}; max_spin_contamination is {limit:g}",
        value=value,
        limit=limit,
        quarantine=value <= settings.reject_spin_contamination,
    )


def _shape(structure: Structure, label: Label) -> Check:
    rows = {
        name: len(array)
        for name, array in (
            ("forces", label.forces),
            ("charges", label.charges),
            *label.other_charges.items(),
        )
        if array is not None and len(array) != len(structure)
    }
    found = ", ".join(f"{name} for {n} atoms" for name, n in rows.items())
    return Check(
        code="shape", passed=not rows, problem=f"{structure.formula} has {len(structure)} atoms, not {found}"
    )


def _finite(label: Label) -> Check:
    arrays = {
        "energy": label.energy,
        "forces": label.forces,
        "stress": label.stress,
        "dipole": label.dipole,
        "quadrupole": label.quadrupole,
        "charges": label.charges,
        **label.other_charges,
    }
    bad = [name for name, a in arrays.items() if a is not None and not np.isfinite(a).all()]
    return Check(code="not_finite", passed=not bad, problem=f"{', '.join(bad)} of the label are not finite")


def _limited(code: str, value: float, limit: float, problem: str) -> Check:
    return Check(
        code=code,
        passed=value <= limit,
        problem=problem.format(value=value, limit=limit),
        value=value,
        limit=limit,
    )


# ── Around a labeler ─────────────────────────────────────────────────────────────────────────


class CheckedLabeler(Closing):
    """A labeler whose labels have passed the checks; closes the labeler with it.

    The label's diagnostics gain ``checks`` and, of those that were drawn for it, ``audits`` (name →
    value, limit, passed), and ``seconds``.
    """

    def __init__(self, labeler: LabelSource, settings: ChecksSettings) -> None:
        self._labeler = labeler
        self._settings = settings

    def close(self) -> None:
        """Ends the labeler's child process, if it has one."""
        close: Callable[[], None] | None = getattr(self._labeler, "close", None)
        if close is not None:
            close()

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._labeler.level

    @property
    def periodic(self) -> bool:
        """Whether it takes periodic structures."""
        return self._labeler.periodic

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that it cannot treat."""
        return self._labeler.missing_elements(numbers)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A checked label, or why there is none.

        Raises:
            TaskFailure: the calculation failed in a way that is not the structure's; an unexpected
                exception is of class ``bug`` with its traceback as message.
        """
        start = time.perf_counter()
        try:
            result = self._checked(structure, deadline)
        except Exception as error:
            failure = as_failure(error)
            if failure is error:
                raise
            raise failure from error
        seconds = round(time.perf_counter() - start, 6)
        return replace(result, diagnostics={**result.diagnostics, "seconds": seconds})

    def _checked(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        made: list[Check] = []
        failed = _first_failed(_prechecks(structure, self._labeler, self._settings), made)
        if failed is not None:
            return _rejection(failed, FailureClass.INPUT)
        label = self._labeler.label(structure, deadline)
        if isinstance(label, Rejection):
            return label
        failed = _first_failed(_gates(structure, label, self._settings), made)
        records = {check.code: check.record() for check in made}
        if failed is not None:
            rejection = _rejection(failed, FailureClass.PHYSICS, label.qm_calls)
            return replace(rejection, diagnostics={**label.diagnostics, "checks": records})
        checked = replace(label, diagnostics={**label.diagnostics, "checks": records})
        return self._audited(structure, checked, deadline)

    def _audited(self, structure: Structure, label: Label, deadline: Deadline) -> Label | Rejection:
        """The label with the audits that were drawn for it, or the rejection by the first that failed."""
        wanted, share = self._settings.audits, self._settings.audit_share
        names = drawn(structure, label, offered_by(self._labeler), wanted, share)
        if not names:
            return label
        began = time.perf_counter()
        made: list[Audit] = []
        for name in names:
            made.append(make_audit(name, self._labeler, structure, label, deadline))
            if not made[-1].passed:
                break
        spent = {"audit_seconds": round(time.perf_counter() - began, 6)}
        diagnostics = {**label.diagnostics, **spent, "audits": {audit.name: audit.record() for audit in made}}
        calls = label.qm_calls + sum(audit.qm_calls for audit in made)
        if made[-1].passed:
            return replace(label, diagnostics=diagnostics, qm_calls=calls)
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code=f"audit_{made[-1].name}",
            message=made[-1].problem,
            diagnostics=diagnostics,
            qm_calls=calls,
            quarantine=True,
        )


def _first_failed(checks: Iterator[Check], made: list[Check]) -> Check | None:
    """The first check that failed, those after it are not made; appends to ``made``."""
    for check in checks:
        made.append(check)
        if not check.passed:
            return check
    return None


def _rejection(check: Check, failure_class: FailureClass, qm_calls: int = 0) -> Rejection:
    return Rejection(
        failure_class=failure_class,
        code=check.code,
        message=check.problem,
        diagnostics={"checks": {check.code: check.record()}},
        qm_calls=qm_calls,
        quarantine=check.quarantine,
    )
