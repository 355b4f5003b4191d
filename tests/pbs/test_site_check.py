"""``hpcal site check`` on the PBS stand-in: good pools, faults in one line, and job history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.helpers import hpcal
from support.pbs_standin import StandIn, running_pbs

pytestmark = [pytest.mark.pbs, pytest.mark.timeout(300)]

SITE = """
kind: pbs
queue: {queue}
walltime: "00:20:00"
submit_grace: 5
pools:
  label:  {{max_workers_per_node: 2, worker_init: "{init}"}}
  sample: {{gpus_per_node: 2, max_workers_per_node: 2}}
  train:  {{}}
"""
NODES = {"cpu1": {"ncpus": 8, "ngpus": 0}, "gpu1": {"ncpus": 8, "ngpus": 2}}


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with running_pbs(tmp_path / "pbs", monkeypatch, nodes=NODES) as found:
        yield found
        assert not list(tmp_path.glob("hpcal-site-check-*"))


def checked(pool: str, *, queue: str = "workq", init: str = "") -> dict[str, Any]:
    Path("s.yaml").write_text(SITE.format(queue=queue, init=init))
    result = hpcal("site", "check", "s.yaml", "--json", "--pool", pool, "--timeout", "90")
    found: dict[str, Any] = json.loads(result.stdout)["pools"][pool]
    assert result.exit_code == (0 if found["ok"] else 1)
    return found


def test_a_good_pool(pbs: StandIn) -> None:
    found = checked("label")
    assert found["ok"], found
    assert len(found["answers"]) == 2
    assert not any("history" in note for note in found["notes"])


def test_gpus_of_workers(pbs: StandIn) -> None:
    found = checked("sample")
    assert sorted(answer["gpus"]["own"] for answer in found["answers"]) == [["0"], ["1"]]


def test_a_pbs_without_history(pbs: StandIn) -> None:
    pbs.set(history=False)
    found = checked("label")
    assert found["ok"], found
    assert any("keeps no history of jobs" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"queue": "nope"}, "the scheduler does not take the job: "),
        ({"init": "exit 3"}, "and failed, exit code 3; it wrote nothing"),
        ({"init": "no-such-command"}, "a command before the workers fails: it wrote "),
    ],
)
def test_faults(pbs: StandIn, keys: dict[str, str], told: str) -> None:
    (fault,) = checked("label", **keys)["faults"]
    assert told in fault
    assert "\n" not in fault
