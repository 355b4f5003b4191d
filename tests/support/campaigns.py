"""Running campaigns in tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import text

from hpcal.engine.campaign import read_campaign
from hpcal.engine.dispatch import Assignment, InlineDispatcher, Report
from hpcal.engine.loop import Controller
from hpcal.engine.start import begin, take_up
from hpcal.engine.tasks import run_attempt
from hpcal.store.database import Store

CAMPAIGN = """
name: tiny
seed: 3
structures: {{smiles: "O"}}
label: {{labeler: teacher, model: {teacher}}}
potential: {{kind: morse, members: 4}}
bootstrap:
  - {{sampler: random_displacement, count: 16, amplitude_A: 0.08}}
sampling:
  - {{sampler: langevin, walkers: 8, batch: 8, time_ps: 0.05, temperature_K: 900, stride: 5}}
uncertainty: {{metric: force_std, threshold: {threshold}}}
selection: {{batch: 8, audit_share: 0.2}}
splits: {{audit_walkers: 0.4}}
stop: {stop}
tasks: {{sample_steps: 40, max_label_chunk: 4}}
"""
"""A campaign that ends in seconds: water with a Morse teacher and an ensemble of Morse potentials."""

SLOTS = {"label": 1, "sample": 1, "train": 1}
SITE = {"name": "inline", "pools": {pool: {"slots": 1, "workers_per_node": 1} for pool in SLOTS}}


def run_inline(file: Path, root: Path, run=run_attempt) -> str:
    """Runs or resumes a campaign in this process; returns why it finished."""
    dispatcher = InlineDispatcher(SLOTS, run)
    spec = read_campaign(file)
    if Store.begun(root):
        context = take_up(root, dispatcher, spec=spec)
    else:
        context, _ = begin(spec, root, dispatcher, SITE)
    try:
        return Controller(context).run()
    finally:
        context.store.release()
        context.store.close()


class StopAfter:
    """Carries assignments out and asks for a stop before the n-th one begins."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, assignment: Assignment) -> Report:
        self.left -= 1
        if self.left < 0:
            Path(assignment.stop_file).touch()
        return run_attempt(assignment)


def query(root: Path, sql: str, **values: object) -> list[tuple]:
    """Rows of a store."""
    store = Store.read(root)
    try:
        with store.session() as session:
            return [tuple(row) for row in session.execute(text(sql), values)]
    finally:
        store.close()


def content(root: Path) -> dict[str, str]:
    """Digests of everything that a campaign has found, times and places aside."""
    queries = {
        "structures": "SELECT id, hash, origin, split, state, reason, step FROM structure ORDER BY id",
        "labels": "SELECT seq, structure_id, energy, forces, split FROM label ORDER BY id",
        "scores": "SELECT structure_id, ensemble_id, purpose, value, energy_error FROM score ORDER BY id",
        "selection": "SELECT structure_id, decision, reason, rank FROM selection ORDER BY id",
        "ensembles": "SELECT generation, state, hash, threshold, decision FROM ensemble ORDER BY id",
        "walkers": "SELECT id, split, stream, step, positions, end_reason FROM walker ORDER BY id",
    }
    return {
        name: hashlib.sha256(repr(query(root, sql)).encode()).hexdigest() for name, sql in queries.items()
    }
