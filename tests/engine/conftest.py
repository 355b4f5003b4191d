"""A campaign that ends in seconds: water with a Morse teacher and an ensemble of Morse potentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.campaigns import CAMPAIGN

from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.potentials.morse import Morse


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
