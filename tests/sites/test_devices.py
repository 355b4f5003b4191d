"""Each worker sees its own GPUs, of those that its batch job was given."""

from __future__ import annotations

import pytest

from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.sites import devices


def job(count: int, *, vendor: str = "nvidia", share: int = 1, **variables: str) -> dict[str, str]:
    """Environment of a batch job on a node with GPUs."""
    return {
        devices.COUNT: str(count),
        devices.SHARE: str(share),
        devices.VENDOR: vendor,
        **variables,
    }


def pinned(environment: dict[str, str], workers: int) -> list[dict[str, str]]:
    """Environments of the workers of a node, pinned."""
    found = []
    for rank in range(workers):
        own = {**environment, "PARSL_WORKER_RANK": str(rank)}
        devices.pin_in(own)
        found.append(own)
    return found


def shown(environment: dict[str, str], workers: int, variable: str = "CUDA_VISIBLE_DEVICES") -> list[str]:
    return [own[variable] for own in pinned(environment, workers)]


def test_a_whole_node_gives_each_worker_one() -> None:
    assert shown(job(4, CUDA_VISIBLE_DEVICES="0,1,2,3"), 4) == ["0", "1", "2", "3"]


def test_a_scheduler_that_shows_nothing_leaves_the_first_ones() -> None:
    assert shown(job(4), 4) == ["0", "1", "2", "3"]
    assert shown(job(2, CUDA_VISIBLE_DEVICES=""), 2) == ["0", "1"]


def test_two_blocks_of_one_gpu_on_one_node_get_different_ones() -> None:
    assert shown(job(1, CUDA_VISIBLE_DEVICES="0"), 1) == ["0"]
    assert shown(job(1, CUDA_VISIBLE_DEVICES="1"), 1) == ["1"]


def test_uuids_and_mig_instances_are_kept() -> None:
    names = "GPU-5a, MIG-7b/1/0"
    assert shown(job(2, CUDA_VISIBLE_DEVICES=names), 2) == ["GPU-5a", "MIG-7b/1/0"]


def test_named_tiles() -> None:
    tiles = " ".join(f"{gpu}.{tile}" for gpu in range(6) for tile in range(2))
    found = pinned(job(12, vendor="intel", **{devices.NAMES: tiles}), 12)
    assert [own["ZE_AFFINITY_MASK"] for own in found][::11] == ["0.0", "5.1"]
    assert all("CUDA_VISIBLE_DEVICES" not in own for own in found)


def test_amd_counts_through_one_variable_only() -> None:
    both = {"ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}
    found = pinned(job(2, vendor="amd", **both), 2)
    assert [own["ROCR_VISIBLE_DEVICES"] for own in found] == ["4", "5"]
    assert all({"HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"}.isdisjoint(own) for own in found)


def test_several_gpus_for_each_worker() -> None:
    assert shown(job(4, share=2, CUDA_VISIBLE_DEVICES="2,3,6,7"), 2) == ["2,3", "6,7"]


@pytest.mark.parametrize(("share", "rank"), [(1, 2), (2, 1), (3, 0)])
def test_too_few_gpus_are_a_fault_of_the_node(share: int, rank: int) -> None:
    environment = job(4, share=share, CUDA_VISIBLE_DEVICES="0,1", PARSL_WORKER_RANK=str(rank))
    told = f"worker {rank} of this node has no GPU: the job sees 0 1"
    with pytest.raises(TaskFailure, match=told) as caught:
        devices.pin_in(environment)
    assert caught.value.failure_class is FailureClass.NODE
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("none", ["NoDevFiles", "-1"])
def test_a_job_that_is_shown_no_gpu_has_none(none: str) -> None:
    with pytest.raises(TaskFailure, match="the job sees none"):
        devices.pin_in(job(1, CUDA_VISIBLE_DEVICES=none))


def test_a_second_time_changes_nothing() -> None:
    environment = job(2, CUDA_VISIBLE_DEVICES="6,7", PARSL_WORKER_RANK="1")
    devices.pin_in(environment)
    devices.pin_in(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"


def test_without_gpus_nothing_is_touched() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0", "PARSL_WORKER_RANK": "5"}
    devices.pin_in(environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": "0", "PARSL_WORKER_RANK": "5"}
