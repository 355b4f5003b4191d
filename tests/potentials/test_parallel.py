"""Several ranks train as one does, and what happens to one of them costs no result."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, FormatError, InputError, TaskFailure
from hpcal.core.launch import RankLauncher
from hpcal.core.protocols import MemberSpec
from hpcal.potentials import files, parallel, rendezvous, training
from hpcal.potentials.ani import ANI
from hpcal.potentials.member import Member
from hpcal.potentials.ranks import Alone, owners
from hpcal.potentials.rendezvous import Place, meet, place
from hpcal.potentials.training import ANITrainer
from hpcal.potentials.training_state import STATE

LAUNCHER = Path(__file__).parents[1] / "support" / "ranks.py"
SMALL = {"hidden": (10, 6), "device": "cpu", "batch_size": 8}
NOISE = {"float64": 1e-12, "float32": 2e-4}
"""Largest difference of a weight from that of one rank; measured: 8e-15 and 2e-6."""
SPECS = [MemberSpec(index=i, seed=10 + i) for i in range(3)]


def kind(**more) -> ANI:
    return ANI(ANI.Settings(**{**SMALL, "data_parallel": True, **more}))


def use_ranks(
    patch: pytest.MonkeyPatch, n: int, *options: str, command: str = f"{sys.executable} {LAUNCHER}"
) -> None:
    """Sets the pool's launcher to that of the tests, for n ranks and with its further options."""
    patch.setenv("HPCAL_MPI_COMMAND", " ".join([command, "-n", str(n), *options]))
    patch.setenv("HPCAL_MPI_RANKS", str(n))


@pytest.fixture
def ranks(monkeypatch):
    return partial(use_ranks, monkeypatch)


def largest_difference(one, two) -> float:
    """Over all weights and biases of two sets of results."""
    members = [[Member.read(Path(r.path)) for r in results] for results in (one, two)]
    pairs = [
        pair
        for a, b in zip(*members, strict=True)
        for pair in zip(itertools.chain(*a.networks), itertools.chain(*b.networks), strict=True)
    ]
    return max(np.abs(v - w).max() for p, q in pairs for v, w in zip(p, q, strict=True))


def same_metrics(one, two, within: float) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.trained_on == b.trained_on
        for name in a.metrics.keys() - {"seconds"}:
            assert a.metrics[name] == pytest.approx(b.metrics[name], rel=within, abs=within), name


def step_of(folder: Path) -> int:
    """Steps of the last checkpoint."""
    path = folder / STATE
    return int(files.read(path, STATE)["step"]) if path.exists() else 0


def fit(what: ANI, dataset, folder: Path, deadline: Deadline):
    return what.trainer(dataset.elements, seed=5).fit(dataset, SPECS, deadline, folder)


def charged(dataset: Dataset) -> Dataset:
    """The structures in turn neutral, as cations and as triplets."""
    place = np.arange(len(dataset)) % 3
    states = {"charges": (place == 1).astype(int), "multiplicities": 1 + place}
    return Dataset(**{**dataset.__dict__, **states})


# ── One result, whatever the number of ranks ─────────────────────────────────────────────────


@pytest.mark.slow
def test_two_ranks_train_as_one(water, tmp_path, trained, ranks):
    settings = {"epochs": 10, "dtype": "float64", "batch_size": 7}
    one = trained(kind(**settings), water, tmp_path / "one")
    ranks(2)
    two = trained(kind(**settings), water, tmp_path / "two")
    assert largest_difference(one, two) < NOISE["float64"]
    same_metrics(one, two, NOISE["float64"])
    assert {p.name.split("-")[0] for p in (tmp_path / "two").iterdir()} == {"finished.json", "member"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_three_ranks_train_as_one_where_batches_do_not_divide(
    dtype, water, mixed_dataset, tmp_path, trained, ranks
):
    """Periodic cells, a label without forces, batches in which a rank has nothing, an idle rank."""
    cases = {
        "water": (water, {"epochs": 20}),
        "mixed": (mixed_dataset(), {"epochs": 10, "batch_size": 4}),
        "recomputed": (mixed_dataset(), {"epochs": 5, "batch_size": 2, "jacobian_memory_GB": 0.0}),
        "two structures": (mixed_dataset().take([0, 3]), {"epochs": 5}),
        "states": (charged(mixed_dataset()), {"epochs": 10, "batch_size": 4, "charge_aware": True}),
        "two states": (charged(mixed_dataset()).take([0, 4]), {"epochs": 5, "charge_aware": True}),
    }
    if dtype == "float32":
        del cases["recomputed"], cases["two structures"], cases["two states"]
    one = {n: trained(kind(dtype=dtype, **more), d, tmp_path / f"{n}-1") for n, (d, more) in cases.items()}
    ranks(3)
    for name, (dataset, more) in cases.items():
        three = trained(kind(dtype=dtype, **more), dataset, tmp_path / f"{name}-3")
        assert largest_difference(one[name], three) < NOISE[dtype], name
        same_metrics(one[name], three, NOISE[dtype])


@pytest.mark.slow
def test_a_warm_start_and_another_number_of_ranks_go_on(water, tmp_path, trained, ranks):
    (cold,) = trained(kind(epochs=3), water, tmp_path / "cold", members=1)
    settings = {"warm_epochs": 6, "dtype": "float64"}
    start = {"members": 1, "start_from": cold.path}
    one = trained(kind(**settings), water, tmp_path / "one", **start)
    ranks(2)
    specs = [MemberSpec(index=0, seed=10, start_from=cold.path)]
    trainer = kind(**settings).trainer(water.elements, seed=5)
    with pytest.raises(TaskFailure, match="after 2 of 6 epochs"):
        trainer.fit(water, specs, Deadline(steps=2), tmp_path / "two")
    ranks(3)
    three = trained(kind(**settings), water, tmp_path / "two", **start)
    assert largest_difference(one, three) < NOISE["float64"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on this machine")
def test_ranks_started_by_mpirun(water, tmp_path, trained, ranks):
    one = trained(kind(epochs=3, dtype="float64"), water, tmp_path / "one")
    ranks(2, "--oversubscribe", command="mpirun --allow-run-as-root")
    two = trained(kind(epochs=3, dtype="float64"), water, tmp_path / "two")
    assert largest_difference(one, two) < NOISE["float64"]


def test_ranks_share_the_structures_evenly():
    sizes = np.random.default_rng(0).integers(2, 60, 500)
    for n in (1, 2, 3, 7):
        owner = owners(sizes, n)
        work = np.array([(sizes[owner == k] ** 2).sum() for k in range(n)])
        assert np.ptp(np.bincount(owner, minlength=n)) <= 1
        assert work.max() < 1.02 * work.mean()


def test_a_rank_holds_its_share_alone(water):
    class Third(Alone):
        rank, size = 2, 3

    trainer = ANITrainer(kind().settings, water.elements, 5, Third())
    job = trainer._job(water, SPECS, "")
    assert len(job.data.structures) == 16 + 4
    assert len(job.data.cached.blocks) == 16 + 4
    assert len(job.own(job.train)) == 16
    assert len(job.own(job.validation)) == 4
    assert len(job.sizes) == 60


# ── Interruptions ────────────────────────────────────────────────────────────────────────────

LONG = {"epochs": 30}  # 180 steps


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def uninterrupted(water, trained, tmp_path_factory):
    """Hashes of the members that two ranks train from begin to end."""
    with pytest.MonkeyPatch.context() as patch:
        use_ranks(patch, 2)
        results = trained(kind(**LONG), water, tmp_path_factory.mktemp("whole"))
    return [r.sha256 for r in results]


class Killer(threading.Thread):
    """Kills a rank in the middle of an epoch, with the checkpoint past some steps."""

    def __init__(self, rank: int, folder: Path, pids: Path) -> None:
        super().__init__(daemon=True)
        self.rank, self.folder, self.pids, self.at = rank, folder, pids, 0

    def run(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            self.at = step_of(self.folder)
            if self.at >= 40 and self.at % 6:
                os.kill(json.loads(self.pids.read_text())[self.rank], signal.SIGKILL)
                return
            time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "options"), [(1, []), (1, ["--keep"]), (0, ["--keep"])])
def test_a_killed_rank_costs_no_result(
    rank, options, water, tmp_path, trained, ranks, every_step, uninterrupted
):
    """Whether or not the launcher ends the others, which by themselves see the connection close."""
    folder, pids = tmp_path / "killed", tmp_path / "pids"
    ranks(2, "--pids", str(pids), *options)
    killer = Killer(rank, folder, pids)
    killer.start()
    began = time.monotonic()
    with pytest.raises(TaskFailure, match="a rank of the 2 was lost") as caught:
        fit(kind(**LONG), water, folder, Deadline())
    assert caught.value.failure_class is FailureClass.NODE
    assert time.monotonic() - began < 60
    assert 40 <= killer.at <= step_of(folder) < 180
    # It may have been writing the next one.
    assert [p.name for p in folder.iterdir() if not p.name.startswith(f".{STATE}.")] == [STATE]
    assert not any(alive(pid) for pid in json.loads(pids.read_text()))
    (folder / f".{STATE}.1").write_bytes(b"half")
    results = trained(kind(**LONG), water, folder)
    assert [r.sha256 for r in results] == uninterrupted
    assert not any(p.name.startswith(".") for p in folder.iterdir())


@pytest.mark.slow
def test_a_stop_request_reaches_the_ranks_and_the_next_call_goes_on(
    water, tmp_path, trained, ranks, every_step, uninterrupted
):
    ranks(2)
    folder = tmp_path / "stopped"
    asked = Deadline(stop=lambda: step_of(folder) >= 20)
    with pytest.raises(TaskFailure, match="stopped by its deadline after") as caught:
        fit(kind(**LONG), water, folder, asked)
    assert caught.value.failure_class is FailureClass.RESOURCE
    assert 20 <= step_of(folder) < 180
    results = trained(kind(**LONG), water, folder)
    assert [r.sha256 for r in results] == uninterrupted


@pytest.mark.slow
def test_a_deadline_ends_the_ranks_in_time_and_the_next_call_goes_on(
    water, tmp_path, trained, ranks, uninterrupted
):
    ranks(2)
    began = time.monotonic()
    with pytest.raises(TaskFailure, match="after 2 of 30 epochs"):
        fit(kind(**LONG), water, tmp_path / "steps", Deadline(steps=2))
    took = time.monotonic() - began
    assert step_of(tmp_path / "steps") == 12
    assert [r.sha256 for r in trained(kind(**LONG), water, tmp_path / "steps")] == uninterrupted
    # Long enough for ranks to start on a busy machine, and far from enough for these epochs.
    seconds, began = 5.0 + 2.0 * took, time.monotonic()
    with pytest.raises(TaskFailure, match="stopped by its deadline after") as caught:
        fit(kind(epochs=100_000), water, tmp_path / "clock", Deadline.after(seconds))
    assert caught.value.failure_class is FailureClass.RESOURCE
    assert seconds <= time.monotonic() - began < seconds + parallel.GRACE_S
    assert (tmp_path / "clock" / STATE).exists()


ENDLESS = """
import sys
from pathlib import Path
from hpcal.core.deadline import Deadline
from hpcal.core.protocols import MemberSpec
from hpcal.exchange.hdf5 import read_shard
from hpcal.potentials.ani import ANI
data = read_shard(Path(sys.argv[1]))
kind = ANI(ANI.Settings(hidden=(10, 6), device="cpu", epochs=100_000, data_parallel=True))
kind.trainer(data.elements, 5).fit(data, [MemberSpec(index=0, seed=1)], Deadline(), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_ranks_end_when_their_worker_is_killed(water, tmp_path, ranks):
    pids = tmp_path / "pids"
    ranks(2, "--pids", str(pids))
    water_file, folder = tmp_path / "water.h5", tmp_path / "orphaned"
    parallel.write_shard(water_file, water)
    worker = subprocess.Popen([sys.executable, "-c", ENDLESS, str(water_file), str(folder)])
    try:
        wait_until(lambda: pids.exists() and any(folder.glob("ranks-*/meeting")))
    finally:
        worker.kill()
        worker.wait()
    own = json.loads(pids.read_text())
    wait_until(lambda: not any(alive(pid) for pid in own))


ORPHAN = """
from pathlib import Path
from hpcal.core.deadline import Deadline
from hpcal.potentials import parallel
parallel._run(["sh", "-c", "echo $$ > launcher; exec sleep 600"], Path.cwd(), Deadline())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel tells of a parent's end on Linux"
)
def test_the_launcher_ends_when_its_worker_is_killed(tmp_path):
    """It may have ranks on other hosts, which do not see the worker."""
    worker = subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=tmp_path)
    launcher = tmp_path / "launcher"
    try:
        wait_until(lambda: launcher.exists() and launcher.read_text().strip())
    finally:
        worker.kill()
        worker.wait()
    pid = int(launcher.read_text())
    try:
        wait_until(lambda: not alive(pid), seconds=10.0)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(so, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


# ── Faults ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--keep"]])
def test_a_fault_in_a_rank_is_said_in_a_sentence(options, water, tmp_path, ranks):
    ranks(2, "--break", "1", *options)
    with pytest.raises(TaskFailure) as caught:
        fit(kind(epochs=5), water, tmp_path, Deadline())
    assert caught.value.failure_class is FailureClass.BUG
    *trace, last = str(caught.value).split("\n")
    assert last == f"rank 1 on {socket.gethostname()} failed: ValueError: a term that cannot be"
    assert trace[0] == "Traceback (most recent call last):"


@pytest.mark.slow
def test_divergence_is_found_by_all_ranks(water, tmp_path, trained, ranks):
    ranks(2)
    with pytest.raises(TaskFailure, match="learning rate") as caught:
        trained(kind(epochs=5, learning_rate=1e25), water, tmp_path)
    assert caught.value.failure_class is FailureClass.PHYSICS


@pytest.mark.slow
def test_ranks_that_do_not_know_of_each_other_are_refused(water, tmp_path, monkeypatch, ranks):
    ranks(2, "--names", "none")
    with pytest.raises(InputError, match="should start 2 ranks, but gave this process no rank"):
        fit(kind(), water, tmp_path, Deadline())
    ranks(2, "--names", "slurm")
    monkeypatch.setenv("HPCAL_MPI_RANKS", "4")
    with pytest.raises(InputError, match="launcher starts 4 ranks, but SLURM_STEP_NUM_TASKS says 2"):
        fit(kind(), water, tmp_path, Deadline())


def test_a_launcher_that_is_not_there_or_starts_nothing_is_of_the_node(water, tmp_path, ranks):
    ranks(2, command="srun-of-nowhere")
    with pytest.raises(TaskFailure, match="srun-of-nowhere cannot be started here") as caught:
        fit(kind(), water, tmp_path, Deadline())
    assert caught.value.failure_class is FailureClass.NODE
    ranks(2, command="false")
    with pytest.raises(TaskFailure, match=r"false ended with exit status 1\)") as caught:
        fit(kind(), water, tmp_path, Deadline())
    assert caught.value.failure_class is FailureClass.NODE
    assert not list(tmp_path.iterdir())


def test_ranks_that_do_not_stop_are_ended(water, tmp_path, ranks, monkeypatch):
    monkeypatch.setattr(parallel, "GRACE_S", 0.5)
    ranks(2, command="sh -c 'sleep 600' sh")
    began = time.monotonic()
    with pytest.raises(TaskFailure, match="did not stop within") as caught:
        fit(kind(), water, tmp_path, Deadline.after(0.2))
    assert caught.value.failure_class is FailureClass.RESOURCE
    assert time.monotonic() - began < 10


def test_without_the_setting_or_a_launcher_training_is_in_this_process(water, tmp_path, trained, ranks):
    alone = [r.sha256 for r in trained(kind(epochs=2), water, tmp_path / "alone")]
    ranks(2, command="srun-of-nowhere")
    own = trained(kind(epochs=2, data_parallel=False), water, tmp_path / "own")
    assert [r.sha256 for r in own] == alone


# ── How ranks find each other ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, (1, 0)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (3, 1),
        ),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, None)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}, (2, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, (3, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9"}, (3, None)),
    ],
)
def test_a_rank_knows_its_place_from_its_launcher(environment, expected):
    found = place(environment, 4)
    assert (found.rank, found.local) == expected
    assert found.size == 4


@pytest.fixture
def no_interface(monkeypatch):
    """No interface is given, and none that a test chooses outlives it."""
    for name in ("HPCAL_INTERFACE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_ranks_meet_and_know_who_shares_their_host(tmp_path, no_interface):
    found = {}

    def come(k: int) -> None:
        found[k] = meet(tmp_path, Place(rank=k, size=2, local=None), 30.0)

    other = threading.Thread(target=come, args=(1,))
    other.start()
    come(0)
    other.join()
    assert json.loads((tmp_path / "meeting").read_text())["address"] == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert [found[k].local for k in (0, 1)] == [0, 1]
    assert found[1].cores == max(1, len(os.sched_getaffinity(0)) // 2)
    found[0].store.set("a", "b")
    assert found[1].store.get("a") == b"b"


def test_a_rank_that_does_not_come_is_named(tmp_path, no_interface):
    with pytest.raises(TaskFailure, match=r"no rank-1, rank-2: these ranks did not start") as caught:
        meet(tmp_path, Place(rank=0, size=3, local=0), 0.1)
    assert caught.value.failure_class is FailureClass.NODE


def test_the_interface_is_the_given_one_or_the_way_to_another_host(monkeypatch, no_interface):
    own = socket.gethostname()
    assert rendezvous._choose_interface([own, "localhost"]) == "127.0.0.1"
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
    monkeypatch.setenv("HPCAL_INTERFACE", "lo")
    assert rendezvous._choose_interface([own, "elsewhere"]) == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("HPCAL_INTERFACE", "ib7")
    with pytest.raises(InputError, match="no network interface ib7 with an IPv4 address"):
        rendezvous._choose_interface([own, "elsewhere"])
    monkeypatch.delenv("HPCAL_INTERFACE")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    with pytest.raises(InputError, match=r"knows no way to host nowhere\.invalid"):
        rendezvous._choose_interface([own, "nowhere.invalid"])


def test_a_worker_of_a_slurm_step_does_not_lend_its_rank(monkeypatch):
    for name in ("SLURM_PROCID", "RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    environment = parallel._environment()
    assert environment.keys().isdisjoint({"SLURM_PROCID", "RANK", "OMPI_COMM_WORLD_RANK"})
    assert (environment["SLURM_JOB_ID"], environment["SLURM_KILL_BAD_EXIT"]) == ("7", "1")


def test_out_of_memory_and_lost_connections_have_their_class():
    from hpcal.potentials.parallel_worker import _of_another, _said

    assert _said(MemoryError(), 1)[0] is FailureClass.RESOURCE
    assert _said(torch.OutOfMemoryError("CUDA out of memory"), 1)[0] is FailureClass.RESOURCE
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert _said(caught.value, 1)[0] is FailureClass.RESOURCE
    assert _said(OSError("no space left"), 1)[0] is FailureClass.NODE
    assert _of_another(RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not _of_another(RuntimeError("shapes differ"))


def test_what_a_rank_cannot_read_is_the_fault_of_its_node(tmp_path):
    from hpcal.potentials import parallel_worker

    # Not 0: the launcher ends the others, which wait for this one.
    assert parallel_worker.main([str(tmp_path)]) == 1
    found = parallel._failure(tmp_path, RankLauncher(command=("run",), ranks=2), parallel._Ending(status=1))
    assert isinstance(found, TaskFailure)
    assert found.failure_class is FailureClass.NODE
    assert f"{tmp_path / 'order'} cannot be read" in str(found)


def test_a_damaged_copy_of_the_data_is_the_fault_of_its_node(water, tmp_path):
    from hpcal.potentials import parallel_worker

    order = parallel.Order(
        settings={}, elements=(1, 8), seed=1, members=tuple(SPECS), fingerprint="f", every=1.0
    )
    parallel._hand_over(tmp_path, RankLauncher(command=("run",), ranks=2), order, water, Deadline())
    assert parallel_worker._handed_over(tmp_path).order == order
    data = tmp_path / parallel.DATA
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"data\.h5") as caught:
        parallel_worker._handed_over(tmp_path)
    assert parallel_worker._said(caught.value, 1)[0] is FailureClass.NODE


@pytest.mark.parametrize("kind_of_error", [FormatError, InputError])
def test_a_damaged_file_that_training_goes_on_from_is_known_as_such(kind_of_error, tmp_path):
    from hpcal.potentials.parallel_worker import _leave_word

    _leave_word(tmp_path, Place(rank=1, size=2, local=None), kind_of_error("models/member-1 is bad"))
    launcher = RankLauncher(command=("run",), ranks=2)
    found = parallel._failure(tmp_path, launcher, parallel._Ending(status=1))
    assert (type(found), str(found)) == (kind_of_error, "models/member-1 is bad")


@pytest.mark.slow
def test_ranks_say_which_file_they_could_not_go_on_from(water, tmp_path, trained, ranks):
    (start,) = trained(kind(epochs=1), water, tmp_path / "cold", members=1)
    path = Path(start.path)
    path.write_bytes(path.read_bytes()[:-1])
    ranks(2)
    with pytest.raises(FormatError, match=f"{path} is damaged"):
        trained(kind(epochs=1), water, tmp_path / "warm", members=1, start_from=start.path)
