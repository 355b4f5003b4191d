"""More labels, generations or samplers for a campaign: its recorded file, changed by rule."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import Group
from hpcal.core.settings import Document, read_yaml
from hpcal.engine import snapshot
from hpcal.engine.campaign import CampaignSpec, campaign_of, part
from hpcal.engine.context import Context, Folders
from hpcal.engine.dispatch import Dispatcher
from hpcal.engine.pairing import check_parts
from hpcal.engine.plan import stop_reason
from hpcal.engine.start import recorded_spec
from hpcal.engine.view import View
from hpcal.store import campaigns, labels, structures
from hpcal.store.database import Store

_SOURCE = "the extended campaign"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What is asked for beyond what a campaign has recorded.

    Attributes:
        labels, generations, quiet_generations: new limits as text: ``600`` as it stands, ``+200``
            on top of the limit, or of what there is where that is more; None leaves one as it is.
        force_rmse: new target, eV/Å, or None.
        energy_rmse: new target, meV/atom, or None.
        walkers: ``64`` for a campaign of one sampler, else ``udd=64`` or ``0=64``: a sampler's name,
            or its place in ``sampling`` from 0.
        samplers: files with one entry of ``sampling`` each, appended in this order.
    """

    labels: str | None = None
    generations: str | None = None
    quiet_generations: str | None = None
    force_rmse: float | None = None
    energy_rmse: float | None = None
    walkers: Sequence[str] = ()
    samplers: Sequence[Path] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return self == Extension()


def extended(store: Store, root: Path, extension: Extension, dispatcher: Dispatcher) -> CampaignSpec:
    """The recorded campaign of a store with more of what is asked for; nothing is written.

    Args:
        dispatcher: gives the slots that the planner's snapshot is taken with.

    Raises:
        InputError: nothing is asked for, a limit is not above what is there, a stop rule would end
            the campaign again at once, or a sampler does not fit; one sentence says which.
    """
    if extension.empty:
        raise InputError(
            "nothing to extend: give at least one of --labels, --generations, --quiet-generations, "
            "--force-rmse, --energy-rmse, --walkers, --add-sampler"
        )
    recorded = recorded_spec(store)
    view = _view(store, root, recorded, dispatcher)
    raw: dict[str, Any] = copy.deepcopy(dict(recorded.raw))
    raw["stop"] = {**raw["stop"], **_limits(recorded, view, extension)}
    raw["sampling"] = [*_with_walkers(recorded, raw["sampling"], extension.walkers)]
    raw["sampling"] += [_sampler(path) for path in extension.samplers]
    spec = campaign_of(Document(raw, {}, _SOURCE), recorded.folder)
    check_parts(spec)
    _refuse_what_would_end_at_once(view, spec)
    return spec


def _view(store: Store, root: Path, spec: CampaignSpec, dispatcher: Dispatcher) -> View:
    with store.session() as session:
        row = campaigns.campaign(session)
        if row.level_of_theory_id is None:
            raise InputError(f"{root} holds a campaign that was never begun; remove the folder")
        context = Context(
            spec=spec,
            store=store,
            folders=Folders(root=root.resolve()),
            dispatcher=dispatcher,
            level=labels.level_by_id(session, row.level_of_theory_id),
            level_id=row.level_of_theory_id,
            elements=structures.elements(session),
        )
        return snapshot.take(session, context)


def _limits(spec: CampaignSpec, view: View, extension: Extension) -> dict[str, Any]:
    """The stop rules that change."""
    stop = spec.file.stop
    newest = view.newest.generation if view.newest is not None else 0
    counts = {
        "labels": (extension.labels, stop.labels, view.labels, "accepted labels"),
        "generations": (extension.generations, stop.generations, newest, "generations"),
        "quiet_generations": (extension.quiet_generations, stop.quiet_generations, 0, "quiet generations"),
    }
    changed: dict[str, Any] = {
        key: _raised(key, text, limit, there, words)
        for key, (text, limit, there, words) in counts.items()
        if text is not None
    }
    targets = {
        "force_rmse_eV_per_A": ("--force-rmse", extension.force_rmse, stop.force_rmse_eV_per_A, "eV/Å"),
        "energy_rmse_meV_per_atom": (
            "--energy-rmse", extension.energy_rmse, stop.energy_rmse_meV_per_atom, "meV/atom",
        ),
    }  # fmt: skip
    for key, (option, target, former, unit) in targets.items():
        if target is None:
            continue
        if former is not None and target >= former:
            raise InputError(
                f"{option} {target:g}: not below the recorded target of {former:g} {unit}; an extension "
                "asks for more, so give a smaller one"
            )
        changed[key] = target
    return changed


def _raised(key: str, text: str, limit: int | None, there: int, words: str) -> int:
    """A new limit from its text. Raises InputError if it is not above the old one and what is there."""
    option = f"--{key.replace('_', '-')}"
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise InputError(f"{option} {text}: give a whole number above 0, such as 600, or +200 for 200 more")
    floor = max(limit or 0, there)
    value = int(digits) + (floor if text.startswith("+") else 0)
    if value > floor:
        return value
    reason = (
        f"the campaign has {there} {words} already"
        if floor == there and there
        else f"the recorded limit is {limit}"
    )
    raise InputError(f"{option} {text}: {reason}; give more than {floor}, or +{digits} for {digits} more")


def _with_walkers(
    spec: CampaignSpec, sampling: Sequence[Mapping[str, Any]], wanted: Sequence[str]
) -> list[dict[str, Any]]:
    """The entries of ``sampling`` with the numbers of walkers that are asked for."""
    entries = [dict(entry) for entry in sampling]
    for text in wanted:
        name, _, number = text.rpartition("=")
        place = _place(spec, name, text)
        if not (number.isascii() and number.isdigit()) or int(number) == 0:
            raise InputError(f"--walkers {text}: {number!r} is no number of walkers above 0")
        former = spec.sampling[place].walkers
        if int(number) <= former:
            raise InputError(
                f"--walkers {text}: sampler {spec.sampling[place].part.name} has {former} walkers; "
                "an extension asks for more"
            )
        entries[place]["walkers"] = int(number)
    return entries


def _place(spec: CampaignSpec, name: str, text: str) -> int:
    """Which entry of ``sampling`` is meant."""
    known = [entry.part.name for entry in spec.sampling]
    if name.isascii() and name.isdigit() and int(name) < len(known):
        return int(name)
    places = [i for i, n in enumerate(known) if n == name] if name else list(range(len(known)))
    if len(places) == 1:
        return places[0]
    listed = ", ".join(f"{i}={n}" for i, n in enumerate(known))
    problem = "says not which sampler is meant" if places else "names no sampler of this campaign"
    raise InputError(
        f"--walkers {text}: {problem}; write PLACE=NUMBER with a place of `sampling` (here: {listed})"
    )


def _sampler(path: Path) -> dict[str, Any]:
    """One more entry of ``sampling``; paths in it are made absolute, as the file is not kept."""
    document = read_yaml(path)
    if not isinstance(document.data, dict) or "sampler" not in document.data:
        raise ConfigurationError(
            f"{path}: give one entry of `sampling` here, such as {{sampler: langevin, walkers: 32}}"
        )
    checked = part(document, (), Group.SAMPLERS, "sampler", path.resolve().parent, own=frozenset({"walkers"}))
    paths = {
        key: str(value)
        for key in document.data
        if isinstance(value := getattr(checked.settings, str(key), None), Path)
    }
    return {**document.data, **paths}


def _refuse_what_would_end_at_once(view: View, spec: CampaignSpec) -> None:
    """Raises InputError if a stop rule still holds: there would be nothing to extend."""
    reason = stop_reason(view, spec) if view.newest is not None else None
    if reason is not None:
        raise InputError(
            f"the campaign would end again at once by another stop rule ({reason}): raise that one as well"
        )
