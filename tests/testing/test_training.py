"""The checks of kinds of potentials find what is wrong with training, files and loading."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcal.core.ensemble import file_sha256
from hpcal.core.errors import FailureClass, FormatError, TaskFailure
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Capabilities, MemberResult
from hpcal.potentials.morse import Morse
from hpcal.testing import ConformanceError, check_potential_kind

SETTINGS = {"members": 2, "steps": 4}


class Altered:
    """A trainer of Morse members around which something is done."""

    def __init__(self, kind, elements, seed):
        self.own = Morse(kind.settings).trainer(elements, seed)

    def fit(self, dataset, members, deadline, checkpoint):
        return self.own.fit(dataset, members, deadline, checkpoint)


def kind_with(trainer_class=None, **methods):
    """The kind ``morse`` with another trainer or other methods."""
    if trainer_class is not None:

        def trainer(self, elements, seed):
            return trainer_class(self, elements, seed)

        methods["trainer"] = trainer
    return type("Kind", (Morse,), methods)


def with_results(change):
    class Results(Altered):
        def fit(self, *arguments):
            return [change(r) for r in super().fit(*arguments)]

    return kind_with(Results)


class GlobalRandom(Altered):
    """Seeds from the global generator."""

    def fit(self, dataset, members, deadline, checkpoint):
        members = [replace(m, seed=int(np.random.randint(10**6))) for m in members]
        return super().fit(dataset, members, deadline, checkpoint)


class OneSeed(Altered):
    def fit(self, dataset, members, deadline, checkpoint):
        return super().fit(dataset, [replace(m, seed=3) for m in members], deadline, checkpoint)


class OnlyTheFirst(Altered):
    def fit(self, dataset, members, deadline, checkpoint):
        return super().fit(dataset, members[:1], deadline, checkpoint)


class OtherSeeds(Altered):
    """Goes on with other seeds where it was interrupted."""

    def fit(self, dataset, members, deadline, checkpoint):
        interrupted = (checkpoint / "state.hpcal").exists()
        if interrupted:
            members = [replace(m, seed=m.seed + 1) for m in members]
        return super().fit(dataset, members, deadline, checkpoint)


class BeginsAgain(Altered):
    """Throws its checkpoint away, so that it never ends."""

    def fit(self, dataset, members, deadline, checkpoint):
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
        return super().fit(dataset, members, deadline, checkpoint)


class WrongClass(Altered):
    def fit(self, *arguments):
        try:
            return super().fit(*arguments)
        except TaskFailure as failure:
            raise TaskFailure(FailureClass.BUG, str(failure)) from failure


def renamed(r: MemberResult) -> MemberResult:
    path = Path(r.path).with_name(f"member-{r.index}.json")
    shutil.copy(r.path, path)
    return replace(r, path=str(path))


def carefree(cls, members, *, device="cpu", dtype="float32"):
    """Takes what cannot be read for the file before."""
    try:
        return Morse.load(members, device=device, dtype=dtype)
    except FormatError:
        return Morse.load(members[1:], device=device, dtype=dtype)


def crashing(cls, members, *, device="cpu", dtype="float32"):
    try:
        return Morse.load(members, device=device, dtype=dtype)
    except FormatError as error:
        raise KeyError("kind") from error


def shallow(cls, members, *, device="cpu", dtype="float32"):
    return Morse.load(members[:1], device=device, dtype=dtype)


CASES = {
    "global random numbers": (kind_with(GlobalRandom), "same training gives the same files.*tolerance: none"),
    "one seed": (kind_with(OneSeed), "members of different seeds differ.*1 different ones of 2"),
    "a member too few": (kind_with(OnlyTheFirst), r"one result for each member.*\[0\]"),
    "other seeds": (kind_with(OtherSeeds), "cut into .* calls ends at the same files"),
    "failure class": (kind_with(WrongClass), "TaskFailure of class resource.*class bug"),
    "hash": (with_results(lambda r: replace(r, sha256="0" * 64)), "sha256 of a result is that of its file"),
    "name": (with_results(renamed), "named by its hash.*member-0.json"),
    "no file": (with_results(lambda r: replace(r, path=r.path + ".gone")), "a member has a file"),
    "validation": (
        with_results(lambda r: replace(r, trained_on=(*r.trained_on, 100))),
        r"train split only.*\[100\]",
    ),
    "metrics": (
        with_results(lambda r: replace(r, metrics={**r.metrics, "train_energy_rmse": np.nan})),
        "metrics of a training are finite",
    ),
    "no seconds": (with_results(lambda r: replace(r, metrics={"epochs": 1.0})), "no seconds"),
    "damaged files": (kind_with(load=classmethod(carefree)), "refuses a member file that is cut in half"),
    "crash on damage": (kind_with(load=classmethod(crashing)), "KeyError.*not FormatError"),
    "capabilities": (
        kind_with(capabilities=lambda self: Capabilities(provides=frozenset({"energies"}))),
        "capabilities before and after training agree",
    ),
    "elements": (
        kind_with(capabilities=lambda self: Capabilities(elements=frozenset({8}))),
        "its elements cover the data",
    ),
    "members": (kind_with(load=classmethod(shallow)), "a member for each file.*1 members"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_broken_promises(case, dataset, tmp_path):
    kind, message = CASES[case]
    with pytest.raises(ConformanceError, match=message):
        check_potential_kind(kind, SETTINGS, dataset, tmp_path)


def test_a_training_that_never_ends_is_found(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("hpcal.testing.training.MOST_CALLS", 12)
    with pytest.raises(ConformanceError, match=r"goes on from its checkpoint.*not at the end after 12 calls"):
        check_potential_kind(kind_with(BeginsAgain), SETTINGS, dataset, tmp_path)


def test_a_potential_that_is_wrong_is_found_after_training(dataset, tmp_path):
    class Wrong(Morse):
        @classmethod
        def load(cls, members, *, device="cpu", dtype="float32"):
            loaded = Morse.load(members, device=device, dtype=dtype)
            forces = loaded.forces
            loaded.forces = lambda batch: 1.001 * forces(batch)
            return loaded

    with pytest.raises(ConformanceError, match=r"Wrong, trained breaks .* mean of member_forces"):
        check_potential_kind(Wrong, SETTINGS, dataset, tmp_path)


def test_single_precision_that_is_too_coarse_is_found(dataset, tmp_path):
    class Coarse(Morse):
        @classmethod
        def load(cls, members, *, device="cpu", dtype="float32"):
            loaded = Morse.load(members, device=device, dtype=dtype)
            if dtype == "float32":
                energies = loaded.energies
                loaded.energies = lambda batch: energies(batch).half().double()
            return loaded

    with pytest.raises(ConformanceError, match=r"energies in float32 are those in float64.*eV/atom"):
        check_potential_kind(Coarse, SETTINGS, dataset, tmp_path, single_precision=1e-5)


def test_a_good_kind_passes_by_class(dataset, tmp_path):
    check_potential_kind(Morse, SETTINGS, dataset, tmp_path)
    results = sorted((tmp_path / "first").glob("member-*.json"))
    assert [file_sha256(p)[:12] in p.name for p in results] == [True, True]
    assert find(Group.POTENTIALS, "morse") is Morse
