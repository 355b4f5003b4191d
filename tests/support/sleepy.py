"""Labelers and a potential that take as long as they are told, where controllers and workers find them.

``sleepy`` is the teacher, and notes each label as it is done, so that a test can tell whether any was
computed twice. ``springs`` costs nothing but its sleep. ``sleepy_ani`` is ``ani`` with a sleep before
each step of a training, so that it takes its time on any machine.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

_MODULE = '''
"""The teacher, asleep for a while before each label."""

import os
import time
from dataclasses import replace

import numpy as np
from pydantic import Field

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.settings import Settings
from hpcal.labeling.teacher import Teacher, TeacherSettings
from hpcal.potentials.ani import ANI
from hpcal.potentials.training import ANITrainer


class SleepySettings(TeacherSettings):
    seconds: float = Field(default=1.0, ge=0)
    log: str | None = None


class Sleepy(Teacher):
    Settings = SleepySettings

    def __init__(self, settings):
        super().__init__(settings)
        self._seconds, self._log = settings.seconds, settings.log

    def label(self, structure, deadline):
        left = deadline.remaining()
        time.sleep(self._seconds if left is None else min(self._seconds, left))
        label = super().label(structure, deadline)
        if self._log:
            with open(self._log, "a") as out:
                out.write(f"{structure.content_hash} {os.getpid()}\\n")
        return label


class SpringsSettings(Settings):
    seconds: float = Field(default=0.0, ge=0)


class Springs:
    Settings = SpringsSettings
    isolate = False
    periodic = False

    def __init__(self, settings):
        self._seconds = settings.seconds
        self.level = LevelOfTheory(code="springs", version="1", method="harmonic")

    def missing_elements(self, numbers):
        return ()

    def label(self, structure, deadline):
        time.sleep(self._seconds)
        vectors = structure.positions[:, None] - structure.positions[None]
        distances = np.linalg.norm(vectors, axis=2) + np.eye(len(structure))
        stretch = np.where(np.eye(len(structure)), 0.0, distances - 1.2)
        forces = -2.0 * (stretch / distances)[..., None] * vectors
        return Label(energy=float(0.5 * (stretch**2).sum()), forces=forces.sum(axis=1), level=self.level)


class SleepyTrainer(ANITrainer):
    def fit(self, dataset, members, deadline, checkpoint):
        def stop():
            time.sleep(0.05)
            return deadline.stop()

        return super().fit(dataset, members, replace(deadline, stop=stop), checkpoint)


class SleepyANI(ANI):
    def trainer(self, elements, seed):
        return SleepyTrainer(self.settings, elements, seed)
'''


def install(folder: Path) -> dict[str, str]:
    """Writes the plugin into a folder; returns an environment in which it is found."""
    folder.mkdir()
    (folder / "hpcal_sleepy.py").write_text(_MODULE)
    info = folder / "hpcal_sleepy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hpcal-sleepy\nVersion: 1.0\n")
    lines = ["[hpcal.labelers]", "sleepy = hpcal_sleepy:Sleepy", "springs = hpcal_sleepy:Springs"]
    lines += ["[hpcal.potentials]", "sleepy_ani = hpcal_sleepy:SleepyANI", ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def computed(log: Path) -> Counter[str]:
    """How often each structure was labelled, by its hash."""
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[0] for line in lines)
