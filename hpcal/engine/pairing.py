"""Parts that do not fit together are refused before anything runs, with the alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from hpcal.core.elements import symbol
from hpcal.core.errors import ConfigurationError, InputError, PluginError
from hpcal.core.label import LevelOfTheory
from hpcal.core.plugins import Group, find, names
from hpcal.core.protocols import Capabilities, Labeler
from hpcal.core.structure import Structure, parity_problem
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.states import StatesSettings, learned_of, without_multiplicity


def check_parts(spec: CampaignSpec) -> None:
    """Metric and samplers against the potential.

    Raises:
        ConfigurationError: naming the key, the reason and what would fit.
    """
    potential = spec.potential.build()
    capabilities: Capabilities = potential.capabilities()
    kind = spec.potential.name
    missing = find(Group.METRICS, spec.metric).requires - capabilities.provides
    if missing:
        raise ConfigurationError(
            f"uncertainty.metric: {spec.metric} needs {', '.join(sorted(missing))}, which potential {kind} "
            f"does not give; metrics that fit: {_fitting_metrics(capabilities)}"
        )
    if potential.n_members < 2:
        raise ConfigurationError(
            f"potential.members: {potential.n_members} member has no spread to tell uncertainty by; "
            "use 2 or more (8 is usual)"
        )
    for index, entry in enumerate(spec.sampling):
        lacking = entry.part.plugin.requires - _properties(capabilities)
        if lacking:
            raise ConfigurationError(
                f"sampling.{index}.sampler: {entry.part.name} needs a potential that is "
                f"{', '.join(sorted(lacking))}, which {kind} is not; use langevin, or another potential"
            )
    _check_surface(spec)


def _check_surface(spec: CampaignSpec) -> None:
    """Walkers move on what the ensemble learns, relaxations on what the seeds' labeler says."""
    labels, seeds = spec.label.part, spec.seed_level.part
    if getattr(labels.plugin, "difference", False):
        raise ConfigurationError(
            f"label.labeler: {labels.name} gives the difference of two levels, and no walker of "
            f"{spec.sampling[0].part.name} can move on an ensemble that learns a difference alone; run the "
            "campaign on the target, or label a file by `hpcal label --config` with this block and learn the "
            "difference by `hpcal train`"
        )
    if getattr(seeds.plugin, "difference", False):
        raise ConfigurationError(
            f"structures.level.labeler: {seeds.name} gives the difference of two levels, which has no minima "
            "to relax to; name the target or the base"
        )


def _fitting_metrics(capabilities: Capabilities) -> str:
    fitting = [n for n in names(Group.METRICS) if find(Group.METRICS, n).requires <= capabilities.provides]
    return ", ".join(fitting) or "none of those installed"


def _properties(capabilities: Capabilities) -> frozenset[str]:
    return frozenset({"differentiable"} if capabilities.differentiable else set())


def check_structures(spec: CampaignSpec, labeler: Labeler, structures: Sequence[Structure]) -> None:
    """Structures against labeler and potential.

    Raises:
        InputError: an element that one of them does not cover, electrons that charge and
            multiplicity cannot have, a periodic structure for a molecular part, or several charge or
            spin states that the potential cannot tell apart.
    """
    for number, structure in enumerate(structures, start=1):
        problem = parity_problem(structure)
        if problem is not None:
            raise InputError(f"structure {number}: {problem}")
    elements = sorted({int(z) for s in structures for z in s.numbers})
    uncovered = labeler.missing_elements(elements)
    if uncovered:
        listed = ", ".join(symbol(z) for z in uncovered)
        raise InputError(
            f"labeler {spec.label.part.name} ({labeler.level}) does not cover {listed}; use a method or "
            "basis that does"
        )
    if spec.label.screen is not None:
        spec.label.screen.check_coverage(structures)
    capabilities: Capabilities = spec.potential.build().capabilities()
    if capabilities.elements is not None:
        beyond = [symbol(z) for z in elements if z not in capabilities.elements]
        if beyond:
            raise InputError(f"potential {spec.potential.name} does not cover {', '.join(beyond)}")
    _check_periodic(spec, labeler, capabilities, structures)
    _check_states(spec, labeler, capabilities, structures)


def _check_periodic(
    spec: CampaignSpec, labeler: Labeler, capabilities: Capabilities, structures: Sequence[Structure]
) -> None:
    if not any(s.periodic for s in structures):
        return
    if not labeler.periodic:
        raise ConfigurationError(
            f"label.labeler: {spec.label.part.name} is molecular and a structure is periodic; use xtb"
        )
    if not capabilities.periodic:
        raise ConfigurationError(
            f"potential.kind: {spec.potential.name} takes molecules only and a structure is periodic"
        )


def _check_states(
    spec: CampaignSpec, labeler: Labeler, capabilities: Capabilities, structures: Sequence[Structure]
) -> None:
    if spec.label.states is not None:
        check_policy(spec.label.states, structures, labeler.level)
    if capabilities.charge_aware:
        return
    if spec.label.states is not None:
        _refuse_blind(spec, spec.label.states, structures)
    states: dict[str, set[tuple[int, int]]] = {}
    for s in structures:
        states.setdefault(s.formula, set()).add((s.charge, s.multiplicity))
    several = {f: found for f, found in states.items() if len(found) > 1}
    if several:
        name, found = next(iter(several.items()))
        listed = ", ".join(f"charge {c} multiplicity {m}" for c, m in sorted(found))
        raise ConfigurationError(
            f"potential.kind: {spec.potential.name} cannot tell charge and spin states of one molecule "
            f"apart, and {name} occurs with {listed}; run a campaign for each state"
        )


def check_policy(policy: StatesSettings, structures: Sequence[Structure], level: LevelOfTheory) -> None:
    """Structures and the level of their labels against a policy of electronic states.

    Raises:
        ConfigurationError: a crystal, a charge whose electrons no listed multiplicity fits, or several
            multiplicities by a method without spin.
    """
    if level.settings.get("spin_polarization") is False and policy.multiplicities != "lowest":
        raise ConfigurationError(
            f"label.states.multiplicities: {level} has no spin polarisation, so that its energies of several "
            "multiplicities are not to be compared (it finds O2 to be a singlet); leave multiplicities out, "
            "or use a labeler with spin, such as pyscf"
        )
    for number, structure in enumerate(structures, start=1):
        if structure.periodic:
            raise ConfigurationError(
                f"label.states: structure {number} ({structure.formula}) is periodic, and charge and "
                "multiplicity of a crystal are no states of a molecule; leave states out"
            )
        charge = without_multiplicity(policy, structure)
        if charge is not None:
            electrons = int(structure.numbers.sum()) - charge
            raise ConfigurationError(
                f"label.states.multiplicities: none of those listed fits the {electrons} electrons that "
                f"{structure.formula} (structure {number}) has with charge {charge}; add "
                f"{1 + electrons % 2}, or give `multiplicities: lowest`"
            )


def _refuse_blind(spec: CampaignSpec, policy: StatesSettings, structures: Sequence[Structure]) -> None:
    """A potential that cannot tell states apart would learn the mean of their energies."""
    for structure in structures:
        learned = learned_of(policy, structure)
        if len(learned) > 1:
            kind = spec.potential.name
            raise ConfigurationError(
                f"label.states: {structure.formula} would be learned with {', '.join(learned)} at one "
                f"geometry, which potential {kind} cannot tell apart; {_alternative(kind)}, leave states "
                "out, or learn one state a geometry, by charges: [0] with several multiplicities and "
                "keep: lowest"
            )


def _alternative(kind: str) -> str:
    """A potential that tells states apart, as the user would write it."""
    aware = [
        name
        for name in names(Group.POTENTIALS)
        if "charge_aware" in find(Group.POTENTIALS, name).Settings.model_fields
    ]
    chosen = kind if kind in aware else next(iter(aware), None)
    if chosen is None:
        return "use one that is charge_aware"
    return f"use potential: {{kind: {chosen}, charge_aware: true}}"


def build_labeler(spec: CampaignSpec) -> Labeler:
    """The campaign's labeler in this process, for its level of theory and its coverage.

    Raises:
        PluginError: its package is not installed.
    """
    try:
        labeler: Labeler = spec.label.part.build()
    except ImportError as error:
        raise PluginError(f"label.labeler: {spec.label.part.name} cannot be loaded: {error}") from error
    return labeler
