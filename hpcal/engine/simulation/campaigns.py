"""Small campaigns of many kinds for simulated histories."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.dataset import Dataset
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.settings import Document
from hpcal.core.structure import Structure
from hpcal.engine.campaign import CampaignSpec, campaign_of
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.start import begin
from hpcal.engine.tasks import run_attempt
from hpcal.exchange.hdf5 import write_shard
from hpcal.potentials.morse import Morse

VARIANTS: Final = 24
SITE: Final = {"name": "simulated", "inline": False, "pools": {}}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kind of campaign with its machine.

    Attributes:
        spec: the campaign.
        slots: workers by pool.
        virtual: whether it must not depend on when it is interrupted.
        template: folder that holds it as just begun.
    """

    spec: CampaignSpec
    slots: dict[str, int]
    virtual: bool
    template: Path

    def copy(self, root: Path) -> None:
        """Puts the campaign, just begun, into a folder."""
        shutil.copytree(self.template, root)


@cache
def variant(number: int, folder: Path) -> Variant:
    """One of the kinds; its files lie in ``folder``, which must outlive it."""
    rng = random.Random(f"variant {number}")
    base = folder / f"variant-{number}"
    base.mkdir(parents=True)
    raw = _campaign(rng, base)
    # Drawn apart, so that the other kinds are what they would be without it.
    many = random.Random(f"members {number}")
    apart = many.random() < 0.5
    if apart:
        _many_members(many, raw)
    _states(random.Random(f"states {number}"), raw)
    spec = campaign_of(Document(raw, {}, f"variant {number}"), base)
    slots = {"label": rng.choice((1, 2, 4)), "sample": rng.choice((1, 2, 3)), "train": rng.choice((1, 1, 2))}
    if apart:
        slots["train"] = many.randint(2, raw["potential"]["members"] + 1)
    if rng.random() < 0.3:
        slots["score"] = 1
    if rng.random() < 0.3:
        slots["label_large"] = 1
    made = Variant(spec=spec, slots=slots, virtual=rng.random() < 0.15, template=base / "template")
    context, _ = begin(spec, made.template, InlineDispatcher(slots, run_attempt), SITE)
    context.store.release()
    context.store.close()
    return made


def _campaign(rng: random.Random, base: Path) -> dict[str, Any]:
    _write_files(rng, base)
    relax, modes = rng.random() < 0.3, rng.random() < 0.15
    bootstrap: list[dict[str, Any]] = [_bootstrap(rng, modes=modes)]
    if rng.random() < 0.25:
        bootstrap.append({"file": "given.h5"})
    evaluate = {"evaluate": {"reference": "reference.h5"}} if rng.random() < 0.25 else {}
    return {
        "name": "simulated",
        "seed": rng.randrange(1000),
        "structures": {"file": "seeds.extxyz", "relax": relax or modes},
        "label": {"labeler": "teacher", "model": "teacher"},
        "potential": {"kind": "morse", "members": rng.choice((2, 2, 3))},
        "bootstrap": bootstrap,
        "sampling": [_sampler(rng) for _ in range(rng.choice((1, 1, 2)))],
        "uncertainty": {"threshold": rng.choice((0.3, 0.5, "calibrated"))},
        "selection": {
            "method": "random", "batch": rng.randint(2, 5), "audit_share": rng.choice((0.0, 0.2, 0.4))
        },
        "splits": {"audit_walkers": rng.choice((0.2, 0.5)), "validation": rng.choice((0.1, 0.3))},
        "promotion": {"margin": rng.choice((0.0, 0.2)), "min_audit": rng.choice((2, 10))},
        "stop": _stop(rng),
        "tasks": {
            "max_label_chunk": rng.choice((3, 4, 6, 6)),
            "max_losses": rng.randint(2, 5),
            "max_failures": rng.randint(1, 3),
            "reserve": rng.choice((0.0, 0.5)),
        },
        **evaluate,
    }  # fmt: skip


def _many_members(rng: random.Random, raw: dict[str, Any]) -> None:
    """Ensembles that can do without a member or two."""
    members = rng.randint(3, 6)
    raw["potential"]["members"] = members
    stated = rng.randint(2, members)
    if rng.random() < 0.7:
        raw["tasks"]["quorum"] = stated


def _states(rng: random.Random, raw: dict[str, Any]) -> None:
    """Geometries in several electronic states, of which all or the lowest multiplicities are learned from."""
    policy: dict[str, Any] = rng.choice(
        (
            {},
            {},
            {"charges": [-1, 0, 1]},
            {"multiplicities": [1, 3], "keep": "lowest"},
            {"charges": [0, 1], "multiplicities": [1, 2, 3, 4], "keep": "lowest"},
        )
    )
    if policy:
        raw["label"]["states"] = policy
    if "charges" in policy:
        raw["potential"] |= {"kind": "ani", "charge_aware": True}


def _bootstrap(rng: random.Random, *, modes: bool) -> dict[str, Any]:
    count = rng.randint(3, 5)
    if modes:
        return {"sampler": "normal_modes", "count": count, "temperature_K": 600}
    return {"sampler": "random_displacement", "count": count, "amplitude_A": 0.08}


def _sampler(rng: random.Random) -> dict[str, Any]:
    return {
        "sampler": rng.choice(("langevin", "langevin", "nve")),
        "walkers": rng.randint(2, 4),
        "batch": rng.randint(2, 4),
        "time_ps": rng.choice((0.03, 0.06)),
        "temperature_K": 600,
    }


def _stop(rng: random.Random) -> dict[str, Any]:
    stop: dict[str, Any] = {"quiet_walkers": rng.randint(2, 5), "quiet_share": 0.3}
    if rng.random() < 0.85:
        stop["labels"] = rng.choice((4, 5, 6, 7, 8, 12))
    if rng.random() < 0.8 or "labels" not in stop:
        stop["generations"] = rng.choice((1, 1, 1, 2, 2, 3)) if "labels" in stop else 1
    else:
        # With nothing else to end it, a few labels more are many generations.
        stop["labels"] = min(stop["labels"], 5)
    if rng.random() < 0.4:
        stop["quiet_generations"] = rng.randint(1, 2)
    return stop


def _write_files(rng: random.Random, base: Path) -> None:
    member = Morse.write_member(base / "teacher" / "member.json", [1, 8])
    EnsembleManifest(kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)).write(
        base / "teacher"
    )
    seeds = [_water(rng) for _ in range(rng.choice((1, 1, 2)))]
    text = "".join(
        "3\nProperties=species:S:1:pos:R:3\n"
        + "".join(f"{s} {x:.8f} {y:.8f} {z:.8f}\n" for s, (x, y, z) in zip("OHH", w.positions, strict=True))
        for w in seeds
    )
    (base / "seeds.extxyz").write_text(text)
    for name in ("given", "reference"):
        _write_labels(rng, base / f"{name}.h5")


def _write_labels(rng: random.Random, path: Path) -> None:
    structures = [_water(rng) for _ in range(3)]
    level = LevelOfTheory(code="file", version="unknown", method="as in the file")
    labels = [Label(energy=-rng.random(), forces=np.zeros((3, 3)) + 0.1, level=level) for _ in structures]
    write_shard(path, Dataset.of(structures, labels))


def _water(rng: random.Random) -> Structure:
    row = [[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]]
    shaken = [[x + 0.05 * rng.random() for x in atom] for atom in row]
    return Structure(numbers=np.array([8, 1, 1]), positions=np.array(shaken))
