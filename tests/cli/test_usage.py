"""Usage errors name what was meant; errors of hpcal are one sentence with their exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest
from cli.helpers import hpcal

from hpcal.cli import look
from hpcal.cli.main import main
from hpcal.core.errors import CampaignFailed, CampaignHeld, InputError, Interrupted


def test_an_unknown_command_names_the_nearest():
    result = hpcal("statos")
    assert result.exit_code == 2
    assert "did you mean 'status'?" in result.stderr


def test_an_unknown_command_like_no_other_lists_all():
    result = hpcal("frobnicate")
    assert result.exit_code == 2
    assert "known: init, run, resume" in result.stderr


def test_an_unknown_option_names_the_nearest():
    result = hpcal("run", "x.yaml", "--sites", "local")
    assert result.exit_code == 2
    assert "--site" in result.stderr.splitlines()[-1]


def test_an_unknown_subcommand_of_config():
    result = hpcal("config", "chek", "x")
    assert result.exit_code == 2
    assert "check" in result.stderr


def test_a_missing_argument():
    assert hpcal("run").exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("wrong"), 2),
        (CampaignFailed("failed"), 1),
        (CampaignHeld("held"), 3),
        (Interrupted("stopped"), 130),
    ],
)
def test_errors_end_with_their_exit_code(monkeypatch, error, code):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(look, "status", fail)
    result = hpcal("status", "x")
    assert result.exit_code == code
    assert result.stderr == f"hpcal: {error}\n"


def test_an_interrupt_exits_130(monkeypatch):
    def fail(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "status", fail)
    assert hpcal("status", "x").exit_code == 130


def test_a_sigterm_exits_130_after_clearing_away(monkeypatch, capsys):
    """Batch systems and `kill` send it; without a handler nothing would be cleared away."""
    cleared = []

    def work(*_args, **_options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleared.append(True)

    monkeypatch.setattr(look, "status", work)
    monkeypatch.setattr(sys, "argv", ["hpcal", "status", "x"])
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 130
    assert cleared
    assert capsys.readouterr().err == "hpcal: interrupted\n"


def status_raises(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(look, "status", fail)


def test_a_full_disk_is_no_fault_of_ours(monkeypatch):
    status_raises(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    result = hpcal("status", "x")
    assert result.exit_code == 1
    assert result.stderr == (
        "hpcal: /scratch/x: no space left on device: free some, and give the command again\n"
    )


def test_an_unexpected_error_says_where_its_traceback_is(monkeypatch):
    status_raises(monkeypatch, ZeroDivisionError("by nothing"))
    result = hpcal("status", "x")
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert "unexpected ZeroDivisionError: by nothing" in result.stderr
    path = result.stderr.strip().rsplit(" ", 1)[1]
    with open(path, encoding="utf-8") as file:
        assert "ZeroDivisionError" in file.read()


def test_debug_shows_the_traceback(monkeypatch, capsys):
    status_raises(monkeypatch, ZeroDivisionError("by nothing"))
    result = hpcal("--debug", "status", "x")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_a_path_that_the_file_system_refuses_is_one_sentence(monkeypatch):
    status_raises(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/some/where"))
    result = hpcal("status", "x")
    assert result.exit_code == 2
    assert result.stderr == "hpcal: /some/where: permission denied\n"
