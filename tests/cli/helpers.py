"""Running commands in this process, and the files of a campaign that ends in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from hpcal.cli.main import cli
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.potentials.morse import Morse

CAMPAIGN = """# Water by an analytic teacher
name: tiny
seed: 3
structures: {file: water.xyz}
label: {labeler: teacher, model: teacher}
potential: {kind: morse, members: 2, steps: 30, warm_steps: 10}
bootstrap: [{sampler: random_displacement, count: 16}]
sampling: [{sampler: langevin, walkers: 6, time_ps: 0.02, temperature_K: 1500}]
selection: {method: random, batch: 5, audit_share: 0.2}
splits: {audit_walkers: 0.4}
stop: {labels: 32, generations: 2}
tasks: {sample_steps: 20}
"""
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def xyz(*frames: np.ndarray, symbols: str = "OHH", keys: str = "") -> str:
    """Extended XYZ of molecules."""
    text = ""
    for positions in frames:
        text += f'{len(positions)}\nProperties=species:S:1:pos:R:3 pbc="F F F" {keys}\n'
        text += "".join(
            f"{s} {' '.join(map(repr, map(float, row)))}\n" for s, row in zip(symbols, positions, strict=True)
        )
    return text


def hpcal(*args: object) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def write_inputs(folder: Path) -> Path:
    """The files of the tiny campaign; returns the campaign file."""
    (folder / "teacher").mkdir()
    member = Morse.write_member(folder / "teacher" / "member.json", [1, 8])
    manifest = EnsembleManifest(
        kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)
    )
    manifest.write(folder / "teacher")
    (folder / "water.xyz").write_text(xyz(WATER))
    (folder / "tiny.yaml").write_text(CAMPAIGN)
    return folder / "tiny.yaml"
