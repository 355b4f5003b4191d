"""The probe, run from its text as on a worker that has another hpcal or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcal.sites.check import _expression


def answer(folder: Path, *, scratch: str = "", flags: tuple[str, ...] = (), **environment: str) -> Any:
    """What a worker answers, by an interpreter of its own that gets the text only."""
    (folder / "token").write_text("abc")
    call = _expression(["numpy", "nothing-of-the-kind"], ["json", "no_such_module"], scratch or str(folder),
                       str(folder), "abc")  # fmt: skip
    code = f"print(repr(eval({call!r})))"
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    return eval(done.stdout)


def test_a_good_worker(tmp_path: Path) -> None:
    found = answer(tmp_path, PARSL_WORKER_RANK="3", HPCAL_GPUS_PER_NODE="4", HPCAL_GPU_VENDOR="nvidia")
    assert found["worker"] == "3"
    assert found["executable"] == sys.executable
    assert found["versions"]["numpy"]
    assert found["versions"]["nothing-of-the-kind"] is None
    assert found["imports"]["json"] >= 0
    assert found["imports"]["no_such_module"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert (found["gpus"]["own"], found["gpus"]["fault"]) == (["3"], "")
    assert found["shared"]["seen"]
    assert not found["shared"]["fault"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["token"]


def test_a_worker_without_hpcal_or_any_package(tmp_path: Path) -> None:
    found = answer(tmp_path, flags=("-S",))
    assert found["versions"]["numpy"] is None
    assert "No module named 'hpcal'" in found["gpus"]["fault"]
    assert found["gpus"]["torch"] is None
    assert found["shared"]["seen"]


@pytest.mark.slow
def test_scratch_may_name_variables_of_the_node(tmp_path: Path) -> None:
    found = answer(tmp_path, scratch="$OWN/deep", OWN=str(tmp_path / "node"))
    assert found["scratch"]["path"] == str(tmp_path / "node" / "deep")
    assert not found["scratch"]["fault"]
    assert (tmp_path / "node" / "deep").is_dir()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    found = answer(tmp_path, scratch="/proc/nowhere")
    assert found["scratch"]["fault"] == "No such file or directory"
    assert found["scratch"]["filesystem"] == "proc"


@pytest.mark.parametrize("content", [None, "something else"])
def test_a_shared_folder_that_is_another_one_there(tmp_path: Path, content: str | None) -> None:
    other = tmp_path / "other"
    other.mkdir()
    if content is not None:
        (other / "token").write_text(content)
    call = _expression([], [], str(tmp_path), str(other), "abc")
    found = eval(call)
    assert not found["shared"]["seen"]
    assert bool(found["shared"]["fault"]) == (content is None)
