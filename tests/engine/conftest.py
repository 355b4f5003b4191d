"""A campaign that ends in seconds: water with a Morse teacher and an ensemble of Morse potentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.potentials.morse import Morse

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


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analytic ensemble of one member that knows H and O."""
    folder = tmp_path_factory.mktemp("teacher")
    member = Morse.write_member(folder / "member.json", [1, 8])
    manifest = EnsembleManifest(
        kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)
    )
    manifest.write(folder)
    return folder


@pytest.fixture
def campaign_file(tmp_path: Path, teacher: Path) -> Callable[..., Path]:
    """Writes the tiny campaign; parts of it can be replaced."""

    def write(
        *, stop: str = "{labels: 40, generations: 3}", threshold: str = "0.02", name: str = "tiny.yaml"
    ) -> Path:
        path = tmp_path / name
        path.write_text(CAMPAIGN.format(teacher=teacher, stop=stop, threshold=threshold))
        return path

    return write
