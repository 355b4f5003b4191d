"""What went wrong in a campaign, grouped by stage, class and cause, with what was done and what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from hpcal.core.errors import FailureClass
from hpcal.store import reasons
from hpcal.store.reasons import Mishap
from hpcal.store.session import Session

NO_CAUSE: Final = "no cause was recorded"
GAP: Final = "…"
"""Stands for what differs between the texts of one cause."""
SHOWN_LENGTH: Final = 76
_TRACEBACK: Final = "Traceback (most recent call last)"
_CLASS: Final = re.compile(rf"({'|'.join(FailureClass)}): ", re.DOTALL)
_PATH: Final = re.compile(r"(?<![\w/])(?:~|\.{1,2})?/[^\s,;:()'\"]+|\b[\w.-]+(?:/[\w.-]+)+\.\w{1,6}\b")
_VARIABLE: Final = re.compile(r"[^\s,;:()\[\]{}'\"=<>|]*\d[^\s,;:()\[\]{}'\"=<>|]*")
_RUN: Final = re.compile(rf"{GAP}(?:,? {GAP})+")


def failures(session: Session, kinds: Sequence[str], stopped: str | None, root: str) -> list[dict[str, Any]]:
    """Everything that went wrong, most frequent first, as JSON values.

    Args:
        kinds: kinds of task that the campaign has.
        stopped: why the campaign failed, or None if it has not.
        root: folder of the campaign, as a word of the commands to type next.
    """
    mishaps = [
        *reasons.given_up(session, kinds),
        *reasons.rejections(session),
        *reasons.quarantines(session),
        *reasons.tried_again(session),
        *reasons.relabelled(session),
    ]
    groups = grouped(mishaps)
    ordered = sorted(groups, key=lambda g: (-g.count, g.stage, g.cause))
    return [_entry(group, stopped, root) for group in ordered]


def hosts_set_aside(session: Session) -> list[dict[str, Any]]:
    """Hosts that get no more tasks, the newest word on each."""
    found: dict[str, dict[str, Any]] = {}
    for event in reasons.happenings(session, reasons.SET_ASIDE):
        host = str(event.data.get("host") or event.message.split()[0])
        found[host] = {
            "host": host, "time": event.time, "message": event.message, "last_task": event.task_id,
        }  # fmt: skip
    return list(found.values())


def changes(session: Session) -> list[dict[str, Any]]:
    """Accepted changes of the campaign file, oldest first."""
    return [
        {"time": event.time, "epoch": event.epoch, "lines": event.message.splitlines()}
        for event in reasons.happenings(session, reasons.CHANGED)
    ]


def word(root: Path | None) -> str:
    """A folder as a word of a command; ``DIR`` where it is not known."""
    return "DIR" if root is None else shlex.quote(str(root))


@dataclass(kw_only=True)
class Group:
    """Mishaps of one cause."""

    what: str
    stage: str
    failure_class: str | None
    code: str = ""
    texts: list[str] = field(default_factory=list)
    count: int = 0
    structures: int = 0
    last_task: int | None = None
    last_structure: int | None = None
    hosts: set[str] = field(default_factory=set)
    set_aside: bool | None = False

    @property
    def cause(self) -> str:
        """The cause in words, with gaps where its texts differ."""
        return common(self.texts)

    def add(self, mishap: Mishap, text: str | None = None) -> None:
        """More rows of this cause, with their text where it was read."""
        self.count += mishap.count
        self.structures += mishap.structures
        self.last_task = _later(self.last_task, mishap.last_task)
        self.last_structure = _later(self.last_structure, mishap.last_structure)
        self.hosts.update(mishap.hosts)
        if text is not None:
            self.texts.append(text)


def grouped(mishaps: Iterable[Mishap]) -> list[Group]:
    """Mishaps by what they are, stage, class and normalised cause."""
    every = list(mishaps)
    hosts = frozenset(host for mishap in every for host in mishap.hosts)
    groups: dict[tuple[str | None, ...], Group] = {}
    for mishap in every:
        cls, text = classified(mishap)
        same = [g for g in groups.values() if _alike(g, mishap)] if text == reasons.REST else []
        if len(same) == 1:
            # Where all that was read has one cause, so has what was only counted.
            same[0].add(mishap)
            continue
        key = (mishap.what, mishap.stage, cls, mishap.code, normalised(text, hosts))
        if key not in groups:
            groups[key] = Group(
                what=mishap.what,
                stage=mishap.stage,
                failure_class=cls,
                code=mishap.code,
                set_aside=mishap.set_aside,
            )
        groups[key].add(mishap, text)
    return list(groups.values())


def _alike(group: Group, rest: Mishap) -> bool:
    """Whether what was only counted may be of a group: same stage and, where it is known, class."""
    same = (group.what, group.stage, group.code) == (rest.what, rest.stage, rest.code)
    return same and rest.failure_class in (None, group.failure_class)


def classified(mishap: Mishap) -> tuple[str | None, str]:
    """Class and cause of a mishap: a recorded text may begin with its class."""
    cls, head, tail = mishap.failure_class, mishap.head.strip(), mishap.tail.strip()
    prefix = _CLASS.match(head)
    if prefix is not None and cls in (None, prefix[1]) and mishap.what != "rejection":
        cls, whole = prefix[1], head == tail
        head = head[prefix.end() :]
        tail = head if whole else tail
    return cls, cause_of(head, tail)


def cause_of(head: str, tail: str | None = None) -> str:
    """The line that says what was wrong: the first one of a text, or the last one of a traceback."""
    source = (head if tail is None else tail) if _TRACEBACK in head else head
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    if not lines:
        return NO_CAUSE
    return lines[-1] if _TRACEBACK in head else lines[0]


def normalised(text: str, hosts: Iterable[str] = ()) -> str:
    """A cause without what differs from case to case: paths, hosts, and words that hold a digit."""
    found = _PATH.sub(GAP, " ".join(text.split()))
    # Names with a digit go with the numbers below.
    named = tuple(sorted((h for h in hosts if not any(map(str.isdigit, h))), key=len, reverse=True))
    if named:
        found = _any_of(named).sub(GAP, found)
    found = _VARIABLE.sub(GAP, found)
    return _RUN.sub(GAP, " ".join(found.split()))


@lru_cache(maxsize=4)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Any of some words as a word of its own."""
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, names))})(?![\w-])")


def common(texts: Sequence[str]) -> str:
    """What texts of one cause have in common, word by word; gaps for the rest."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0]
    words = [text.split() for text in distinct]
    if len({len(found) for found in words}) > 1:
        return normalised(distinct[0])
    kept = [found[0] if len(set(found)) == 1 else _gap(found[0]) for found in zip(*words, strict=True)]
    return _RUN.sub(GAP, " ".join(kept))


def _gap(example: str) -> str:
    """A gap that keeps the punctuation after a word."""
    return GAP + example[len(example.rstrip(",;:.)")) :]


def _later(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _entry(group: Group, stopped: str | None, root: str) -> dict[str, Any]:
    """A group as JSON values."""
    cls = group.failure_class or ("input" if group.what == "quarantine" else None)
    return {
        "what": group.what,
        "kind": "structure" if group.what == "quarantine" else group.stage,
        "failure_class": cls,
        "cause": f"{group.code}: {group.cause}" if group.code else group.cause,
        "code": group.code or None,
        "count": group.count,
        "task_id": group.last_task,
        "stage": group.stage,
        "class": cls,
        "structures": group.structures,
        "last_task": group.last_task,
        "last_structure": group.last_structure,
        "hosts": sorted(group.hosts),
        "answer": answer(group, stopped),
        "next": _next(group, root),
    }


def answer(group: Group, stopped: str | None) -> str:
    """What was done about it, in a few words."""
    if stopped is not None and f"stage {group.stage}" in stopped and group.what != "retried":
        return "stage stopped"
    if group.what == "rejection":
        return _VERDICTS[group.set_aside]
    return {"task": "given up", "retried": "retried", "quarantine": "set aside"}[group.what]


_VERDICTS: Final[Mapping[bool | None, str]] = {
    False: "rejected",
    True: "set aside",
    None: "rejected or set aside",
}


def _next(group: Group, root: str) -> str:
    if group.last_task is not None:
        return f"hpcal why {root} task:{group.last_task}"
    if group.last_structure is not None:
        return f"hpcal why {root} structure:{group.last_structure}"
    return f"hpcal report {root}"


def failure_lines(found: Sequence[Mapping[str, Any]], shown: int) -> list[str]:
    """Failures as aligned lines of a terminal; the commonest ``shown`` of them."""
    if not found:
        return []
    rows = [
        (f["stage"], f"{f['count']} ×", f"{_cause_text(f)}, {f['answer']}", f["next"]) for f in found[:shown]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"  {stage:<{widths[0]}}  {count:>{widths[1]}}  {cause:<{widths[2]}}  {command}"
        for stage, count, cause, command in rows
    ]
    more = len(found) - shown
    if more > 0:
        lines.append(f"  and {more} more cause{'s' if more > 1 else ''}; see the report, or --json")
    return ["failures", *lines]


def _cause_text(entry: Mapping[str, Any]) -> str:
    text = str(entry["cause"]).removeprefix(f"{entry['code']}: ")
    hosts = entry["hosts"]
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} hosts" if hosts else ""
    if len(hosts) == 1 and hosts[0] in text:
        where = ""
    if len(text) > SHOWN_LENGTH:
        text = text[: SHOWN_LENGTH - 1].rstrip() + GAP
    return f"{text}{where} ({entry['class'] or 'unclassified'})"
