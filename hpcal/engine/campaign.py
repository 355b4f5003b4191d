"""The checked specification of a campaign, made of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from hpcal.core.errors import PluginError
from hpcal.core.plugins import Group, find, names, nearest
from hpcal.core.settings import Document, Settings, read_yaml, validate
from hpcal.core.walker import Split
from hpcal.engine.campaign_file import CampaignFile, GivenCampaign
from hpcal.engine.states import StatesSettings
from hpcal.labeling.checks import ChecksSettings
from hpcal.labeling.delta import DeltaSettings
from hpcal.labeling.screen import Screen, ScreenSettings
from hpcal.uncertainty.calibration import CalibrationSettings


@dataclass(frozen=True, kw_only=True)
class Part:
    """A plugin with its checked settings.

    Attributes:
        group: kind of plugin.
        name: its short name.
        settings: its checked settings.
    """

    group: Group
    name: str
    settings: Settings

    def build(self) -> Any:
        """The part itself. Raises PluginError if its package is missing."""
        return find(self.group, self.name)(self.settings)

    @property
    def plugin(self) -> Any:
        """The class of the part."""
        return find(self.group, self.name)

    def as_dict(self) -> dict[str, Any]:
        """Name and settings as JSON values, for tasks."""
        return {"name": self.name, "settings": self.settings.model_dump(mode="json")}

    @classmethod
    def of(cls, group: Group, record: Mapping[str, Any]) -> Part:
        """The part of :meth:`as_dict`."""
        model = find(group, record["name"]).Settings
        return cls(group=group, name=record["name"], settings=model.model_validate(record["settings"]))


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """A labeler, the policy of its checks, what is asked before it, and in which states.

    Attributes:
        screen: a cheaper labeler that turns structures away, or None.
        states: electronic states that each geometry is labelled in, or None for its own alone. What
            becomes a task is in one state, so that tasks do not know of it.
    """

    part: Part
    checks: ChecksSettings
    screen: Screen | None = None
    states: StatesSettings | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for tasks."""
        screened = {} if self.screen is None else {"screen": self.screen.as_dict()}
        return {**self.part.as_dict(), "checks": self.checks.model_dump(mode="json"), **screened}


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Another campaign whose labels are learned from.

    Attributes:
        folder: its folder.
        splits: which of its labels are taken.
        generation: only those in the data set of this generation, or None for all.
    """

    folder: Path
    splits: tuple[Split, ...]
    generation: int | None


@dataclass(frozen=True, kw_only=True)
class BootstrapSpec:
    """One source of first structures: a generator and how many, a file, or another campaign."""

    part: Part | None = None
    count: int = 0
    file: Path | None = None
    campaign: LabelSource | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """One sampler and how many walkers it keeps alive."""

    part: Part
    walkers: int


@dataclass(frozen=True, kw_only=True)
class SelectionSpec:
    """A selector, the size of a batch and the share of labels that audits."""

    part: Part
    batch: int
    audit_share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CampaignSpec:
    """A checked campaign.

    Attributes:
        file: the plain blocks.
        folder: what relative paths in the file are relative to.
        raw: the file as read, for comparing and storing.
    """

    file: CampaignFile
    folder: Path
    raw: Mapping[str, Any]
    label: LabelSpec
    seed_level: LabelSpec
    potential: Part
    bootstrap: tuple[BootstrapSpec, ...]
    sampling: tuple[SamplingSpec, ...]
    metric: str
    selection: SelectionSpec
    calibration: CalibrationSettings

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.file.name

    @property
    def seed(self) -> int:
        """Seed of every random choice."""
        return self.file.seed

    def quorum(self, members: int) -> int:
        """How many of so many members make an ensemble."""
        stated = self.file.tasks.quorum
        return min(members, max(2, ceil(0.75 * members)) if stated is None else stated)

    @cached_property
    def reference(self) -> Path | None:
        """The fixed reference set, or None."""
        given = self.file.evaluate.reference
        return None if given is None else self.folder / given

    @cached_property
    def relaxes(self) -> bool:
        """Whether seeds are relaxed before anything else."""
        if self.file.structures.relax is not None:
            return self.file.structures.relax
        generators = [b.part.plugin for b in self.bootstrap if b.part is not None]
        return self.file.structures.smiles is not None or any(g.needs_minimum for g in generators)


def read_campaign(path: Path) -> CampaignSpec:
    """Reads and checks a campaign file, structures and pairings aside.

    Raises:
        ConfigurationError: with file, line and key.
        PluginError: a part is unknown or its package is missing.
    """
    return campaign_of(read_yaml(path), path.resolve().parent)


def campaign_of(document: Document, folder: Path) -> CampaignSpec:
    """The specification of a parsed campaign file. Raises as :func:`read_campaign`."""
    if not isinstance(document.data, dict):
        what = "a list" if isinstance(document.data, list) else "one value"
        raise document.fault(
            (), f"a campaign file holds keys, such as `name: water`, and this is {what}; see `hpcal init`"
        )
    file = validate(CampaignFile, document)
    _check_sources(file, document)
    label = label_spec(document, ("label",), folder)
    potential = part(document, ("potential",), Group.POTENTIALS, "kind", folder)
    _check_quorum(file.tasks.quorum, potential, document)
    return CampaignSpec(
        file=file,
        folder=folder,
        raw=document.data,
        label=label,
        seed_level=_seed_level(document, label, folder),
        potential=potential,
        bootstrap=tuple(_bootstrap(document, ("bootstrap", i), folder) for i in range(len(file.bootstrap))),
        sampling=tuple(_sampling(document, ("sampling", i), folder) for i in range(len(file.sampling))),
        metric=_metric(document, file),
        selection=_selection(document, folder),
        calibration=validate(
            CalibrationSettings, document, dict(file.uncertainty.calibration), ("uncertainty", "calibration")
        ),
    )


def part(
    document: Document,
    at: tuple[str | int, ...],
    group: Group,
    key: str,
    folder: Path,
    *,
    own: frozenset[str] = frozenset(),
    default: str | None = None,
) -> Part:
    """A plugin's block of a document.

    Args:
        at: where the block stands.
        key: the key that names the plugin.
        own: keys of the block that are not the plugin's.
        default: its name where the key is missing.
    """
    data = dict(_at(document, at))
    name = data.pop(key, default)
    if not isinstance(name, str):
        raise document.fault(at, f"{key}: this key is missing; it names the {group.singular}")
    plugin = _find(group, name, document, (*at, key))
    known = {*plugin.Settings.model_fields, *own, key}
    for unknown in sorted(set(map(str, data)) - known):
        raise document.fault((*at, unknown), f"unknown key{nearest(unknown, known)}")
    settings = validate(plugin.Settings, document, {k: v for k, v in data.items() if k not in own}, at)
    return Part(group=group, name=name, settings=_absolute(settings, folder))


def label_spec(
    document: Document,
    at: tuple[str | int, ...],
    folder: Path,
    *,
    own: frozenset[str] = frozenset({"checks", "screen", "states"}),
) -> LabelSpec:
    """A labeler's block: ``labeler``, its settings, ``checks``, ``screen`` and ``states``.

    Args:
        own: keys of the block that are not the labeler's.
    """
    data = _at(document, at)
    return LabelSpec(
        part=part(document, at, Group.LABELERS, "labeler", folder, own=own),
        checks=validate(ChecksSettings, document, data.get("checks", {}), (*at, "checks")),
        screen=_screen(document, (*at, "screen"), folder) if "screen" in data else None,
        states=_states(document, (*at, "states")) if "states" in data else None,
    )


def _states(document: Document, at: tuple[str | int, ...]) -> StatesSettings:
    """The electronic states of a labeler's block."""
    if not isinstance(_at(document, at[:-1])["states"], dict):
        raise document.fault(at, "name charges or multiplicities, such as {charges: [-1, 0, 1]}")
    return validate(StatesSettings, document, _at(document, at), at)


def _screen(document: Document, at: tuple[str | int, ...], folder: Path) -> Screen:
    """The cheaper labeler of a labeler's block, and where it draws the line."""
    own = frozenset(ScreenSettings.model_fields)
    if not isinstance(_at(document, at[:-1])["screen"], dict):
        raise document.fault(at, "name a labeler and its settings, such as {labeler: xtb}")
    cheap = part(document, at, Group.LABELERS, "labeler", folder, own=own)
    if getattr(cheap.plugin, "difference", False):
        raise document.fault((*at, "labeler"), f"{cheap.name} gives no forces to screen by; use xtb")
    policy = {key: value for key, value in _at(document, at).items() if key in own}
    return Screen(
        name=cheap.name, settings=cheap.settings, policy=validate(ScreenSettings, document, policy, at)
    )


def _seed_level(document: Document, label: LabelSpec, folder: Path) -> LabelSpec:
    """What relaxations and Hessians are calculated by; they are never screened."""
    if _at(document, ("structures",)).get("level") is None:
        return replace(label, screen=None)
    return label_spec(document, ("structures", "level"), folder, own=frozenset({"checks"}))


def _at(document: Document, at: tuple[str | int, ...]) -> dict[str, Any]:
    data = document.data
    for key in at:
        data = data.get(key, {}) if isinstance(data, dict) else data[key]
    return dict(data)


def _absolute(settings: Settings, folder: Path) -> Settings:
    """Paths in a plugin's settings are relative to the file that they stand in."""
    if isinstance(settings, DeltaSettings):
        return settings.in_folder(folder)
    paths = {
        name: folder / value
        for name in type(settings).model_fields
        if isinstance(value := getattr(settings, name), Path)
    }
    return settings.model_copy(update=paths) if paths else settings


def _check_sources(file: CampaignFile, document: Document) -> None:
    given = [k for k in ("smiles", "file") if getattr(file.structures, k) is not None]
    if len(given) != 1:
        raise document.fault(("structures",), "give either `smiles` or `file`")
    stop = file.stop
    rules = (
        stop.labels,
        stop.generations,
        stop.quiet_generations,
        stop.force_rmse_eV_per_A,
        stop.energy_rmse_meV_per_atom,
    )
    if all(rule is None for rule in rules):
        raise document.fault(
            ("stop",), "no stop rule: give at least one of labels, generations, quiet_generations"
        )


def _check_quorum(quorum: int | None, potential: Part, document: Document) -> None:
    members = getattr(potential.settings, "members", None)
    if quorum == 1:
        raise document.fault(
            ("tasks", "quorum"), "one member has no spread to tell uncertainty by; give 2 or more"
        )
    if quorum is not None and members is not None and quorum > members:
        raise document.fault(
            ("tasks", "quorum"),
            f"potential.members is {members}, so that {quorum} are never there; give at most {members}",
        )


def _bootstrap(document: Document, at: tuple[str | int, ...], folder: Path) -> BootstrapSpec:
    data = _at(document, at)
    if "file" in data:
        unknown = sorted(set(data) - {"file"})
        if unknown:
            raise document.fault((*at, unknown[0]), "a bootstrap from a file takes no other key")
        return BootstrapSpec(file=folder / str(data["file"]))
    if "campaign" in data:
        given = validate(GivenCampaign, document, data, at)
        return BootstrapSpec(
            campaign=LabelSource(
                folder=folder / given.campaign, splits=tuple(given.splits), generation=given.generation
            )
        )
    count = _count(document, at, "count", data.get("count"))
    generator = part(document, at, Group.SAMPLERS, "sampler", folder, own=frozenset({"count"}))
    _stage(document, at, generator, "bootstrap")
    return BootstrapSpec(part=generator, count=count)


def _sampling(document: Document, at: tuple[str | int, ...], folder: Path) -> SamplingSpec:
    walkers = _count(document, at, "walkers", _at(document, at).get("walkers", 64))
    sampler = part(document, at, Group.SAMPLERS, "sampler", folder, own=frozenset({"walkers"}))
    _stage(document, at, sampler, "sampling")
    return SamplingSpec(part=sampler, walkers=walkers)


def _stage(document: Document, at: tuple[str | int, ...], sampler: Part, stage: str) -> None:
    if sampler.plugin.stage != stage:
        fitting = [n for n in names(Group.SAMPLERS) if find(Group.SAMPLERS, n).stage == stage]
        raise document.fault(
            (*at, "sampler"),
            f"{sampler.name} cannot be used in {stage}; those that can: {', '.join(fitting)}",
        )


def _metric(document: Document, file: CampaignFile) -> str:
    name = file.uncertainty.metric
    _find(Group.METRICS, name, document, ("uncertainty", "metric"))
    return name


def _find(group: Group, name: str, document: Document, at: tuple[str | int, ...]) -> Any:
    """A plugin; a fault says where in the file it is named."""
    try:
        return find(group, name)
    except PluginError as error:
        raise PluginError(str(document.fault(at, str(error)))) from None


def _selection(document: Document, folder: Path) -> SelectionSpec:
    data = _at(document, ("selection",))
    share = data.get("audit_share", 0.1)
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise document.fault(("selection", "audit_share"), f"a share from 0 up to 1, not {share!r}")
    return SelectionSpec(
        part=part(
            document, ("selection",), Group.SELECTORS, "method", folder,
            own=frozenset({"batch", "audit_share"}), default="farthest_point",
        ),
        batch=_count(document, ("selection",), "batch", data.get("batch", 40)),
        audit_share=float(share),
    )  # fmt: skip


def _count(document: Document, at: tuple[str | int, ...], key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        shown = "this key is missing" if value is None else f"a whole number above 0, not {value!r}"
        raise document.fault((*at, key), shown)
    return value
