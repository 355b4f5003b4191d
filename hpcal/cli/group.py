"""What all commands have in common: one clear sentence for every error, and its exit code."""

from __future__ import annotations

import difflib
import errno
import tempfile
import traceback
from pathlib import Path
from typing import Any, Final

import click

from hpcal.core.errors import HpcalError, Interrupted

_USERS: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What a file system refuses because of the path that was given."""

_FULL: Final = frozenset({errno.EDQUOT, errno.ENOSPC})
"""What it refuses for want of space."""


class HpcalGroup(click.Group):
    """Commands in the order in which they were added, with errors turned into sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the definitions, which is that of a campaign's life."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; an unknown one names the nearest."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.commands, n=1, cutoff=0.5)
            known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(self.commands)}"
            ctx.fail(f"no such command {name!r}; {known}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; an error ends it with one sentence on standard error and its exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(Interrupted.exit_code)
        except HpcalError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            _say(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output has gone; click ends quietly
                raise
            ctx.exit(_file_error(error, debug=bool(ctx.params.get("debug"))))
        except Exception as error:
            ctx.exit(_unexpected(error, debug=bool(ctx.params.get("debug"))))


def _say(text: str) -> None:
    click.echo(f"hpcal: {text}", err=True)


def _file_error(error: OSError, *, debug: bool) -> int:
    """The sentence on what the file system refused, or a traceback where it is not the user's to mend."""
    if error.errno in _FULL:
        if debug:
            traceback.print_exc()
        where = "" if error.filename is None else f"{error.filename}: "
        _say(f"{where}{(error.strerror or str(error)).lower()}: free some, and give the command again")
        return 1
    if error.errno not in _USERS or error.filename is None:
        return _unexpected(error, debug=debug)
    if debug:
        traceback.print_exc()
    _say(f"{error.filename}: {(error.strerror or str(error)).lower()}")
    return 2


def _unexpected(error: Exception, *, debug: bool) -> int:
    summary = f"unexpected {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    if debug:
        traceback.print_exc()
        _say(f"{summary.rstrip(': ')}; this is a fault of hpcal or of a plugin")
        return 1
    where = _kept(traceback.format_exc())
    _say(f"{summary.rstrip(': ')}; this is a fault of hpcal or of a plugin, {where}")
    return 1


def _kept(text: str) -> str:
    """Where the traceback is, as the error may be hours of computing away from a second look."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="hpcal-error-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        return f"its traceback is in {Path(file.name)}"
    except OSError:
        return "see its traceback with `hpcal --debug …`"
