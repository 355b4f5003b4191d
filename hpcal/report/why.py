"""What happened to one task: its attempts, why they ended, the end of the log, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hpcal.core.errors import FailureClass, InputError
from hpcal.core.plugins import nearest
from hpcal.engine.failures import POLICIES, Answer
from hpcal.report.failures import classified, word
from hpcal.report.lineage import ID_DIGITS
from hpcal.store import history, reasons
from hpcal.store import lineage as rows
from hpcal.store.database import Store
from hpcal.store.reasons import Mishap
from hpcal.store.session import Session
from hpcal.store.transitions import CampaignState, StructureState, TaskState

Record = Mapping[str, Any]
LOG_LINES: Final = 20
LOG_BYTES: Final = 65536
"""Bytes at the end of a log that are looked at."""
SHOWN: Final = 10
KINDS: Final = ("task", "structure")
_BLOCK: Final = re.compile(r"^parsl\.(?P<pool>\w+)\.block-(?P<block>[^.]+)(?:\.(?P<time>\d+(?:\.\d+)?))?\.")
"""Files of a block: its script and what it writes; some names hold the moment of the submission."""


def why(store: Store, root: Path, what: str) -> dict[str, Any]:
    """What happened to a task; the JSON of ``hpcal why --json``.

    Args:
        root: folder of the campaign, where logs lie.
        what: ``17`` or ``task:17``; ``structure:5`` for the last task of a structure.

    Returns:
        ``task, does, attempts, failure, log, rejections, structures, events, next``; times in
        seconds since the epoch. ``failure`` and ``log`` are None where there is none.

    Raises:
        InputError: no such task or structure; says which exist.
    """
    kind, number = _parsed(what)
    with store.session() as session:
        task_id = number if kind == "task" else _task_of(session, number)
        task = rows.task(session, task_id, inputs=True)
        if task is None:
            raise InputError(_missing(session, "task", task_id))
        state = history.campaign(session).state
        attempts = [_attempt(session, root, a) for a in rows.attempts(session, task_id)]
        # A structure that was set aside before it came to be labelled is in no inputs.
        asked = [number] if kind == "structure" else []
        ids = list(dict.fromkeys([*task["inputs"].get("structure_ids", ()), *asked]))
        found: dict[str, Any] = {
            "task": {k: v for k, v in task.items() if k != "inputs"},
            "does": in_words(task["kind"], task["inputs"]),
            "attempts": attempts,
            "failure": _failure(task, attempts),
            "log": _log(root, attempts),
            "rejections": reasons.rejections_of(session, task_id),
            "structures": reasons.structure_states(session, ids),
            "events": rows.events(session, task_id=task_id),
        }
    return found | {"next": _next(found, str(state), word(root))}


def _parsed(what: str) -> tuple[str, int]:
    kind, colon, number = what.strip().rpartition(":")
    kind = kind if colon else "task"
    if kind not in KINDS:
        raise InputError(
            f"{what!r}: {kind!r} is nothing that runs{nearest(kind, KINDS)}; give a task, such as task:17, "
            "or structure:5 for the last task of a structure; `hpcal trace` tells of everything else"
        )
    if not (number.isascii() and number.isdigit()):
        raise InputError(
            f"{what!r} is no id: give the number of a task, such as 17 or task:17, or structure:5 for the "
            "last task of a structure"
        )
    if len(number) > ID_DIGITS:
        raise InputError(f"no such {kind}: {number[:40]} is more than any id")
    return kind, int(number)


def _missing(session: Session, kind: str, number: int) -> str:
    count, low, high = rows.known_ids(session, kind)
    if not count:
        return f"there is no {kind} {number}: this campaign has no {kind} yet"
    return f"there is no {kind} {number}: this campaign has {count}, numbered {low} to {high}"


def _task_of(session: Session, structure_id: int) -> int:
    structure = rows.short_structure(session, structure_id)
    if structure is None:
        raise InputError(_missing(session, "structure", structure_id))
    task_id = reasons.last_task_of(session, structure_id)
    if task_id is None:
        reason = f": {structure['reason']}" if structure["reason"] else ""
        raise InputError(
            f"structure {structure_id} ({structure['origin']}, {structure['state']}{reason}) was in no task; "
            "`hpcal trace` tells where it comes from"
        )
    return task_id


# What a task is


def in_words(kind: str, inputs: Record) -> str:
    """What a task does, from its frozen inputs."""
    words = _WORDS.get(kind)
    return kind if words is None else words(inputs)


def _span(ids: Sequence[int]) -> str:
    """Ids in short: ``4, 5, 7`` or ``4 to 67``."""
    if len(ids) > 4 and list(ids) == list(range(ids[0], ids[-1] + 1)):
        return f"{ids[0]} to {ids[-1]}"
    shown = ", ".join(map(str, ids[:SHOWN]))
    return f"{shown} and {len(ids) - SHOWN} more" if len(ids) > SHOWN else shown


def _structures(verb: str, inputs: Record) -> str:
    ids = inputs["structure_ids"]
    return f"{verb} {len(ids)} structure{'s' if len(ids) != 1 else ''} ({_span(ids)})"


def _train(inputs: Record) -> str:
    members = [member["index"] for member in inputs["members"]]
    return f"train members {_span(members)} of ensemble {inputs['ensemble_id']}"


def _evaluate(inputs: Record) -> str:
    groups = ", ".join(f"{g['ensemble_id']} on {len(g['structure_ids'])}" for g in inputs["groups"])
    decided = inputs.get("decide")
    end = "" if decided is None else f", then decide on ensemble {decided}"
    return f"evaluate ensembles on labelled structures ({groups or 'none are missing'}){end}"


def _sample(inputs: Record) -> str:
    ids = inputs["walker_ids"]
    return (
        f"advance {len(ids)} walkers ({_span(ids)}) of sampling.{inputs['entry']} under ensemble "
        f"{inputs['ensemble_id']}"
    )


_WORDS: Final[Mapping[str, Callable[[Record], str]]] = {
    "relax": lambda i: f"{_structures('relax', i)} to minima",
    "curvature": lambda i: f"look at the curvature of structure {i['minimum_id']}",
    "bootstrap": lambda i: (
        f"make {i['count']} structures around structure {i['minimum_id']} (bootstrap.{i['entry']})"
    ),
    "label": lambda i: _structures("label", i),
    "train": _train,
    "evaluate": _evaluate,
    "rescore": lambda i: f"{_structures('score', i)} again under ensemble {i['ensemble_id']}",
    "select": lambda i: (
        f"choose at most {i['budget']} of {len(i['structure_ids'])} candidates under ensemble "
        f"{i['ensemble_id']}"
    ),
    "sample": _sample,
}


# How its attempts ended


def _attempt(session: Session, root: Path, row: Record) -> dict[str, Any]:
    names = (
        "id", "number", "state", "executor", "host", "pid", "block", "epoch", "dispatched", "start", "end",
        "seconds", "log",
    )  # fmt: skip
    cls, reason = _reason(row)
    block = {"pool": row["executor"], "block": str(row["block"]), "epoch": row["epoch"]}
    end = None if row["block"] is None else rows.block_end(session, **block)
    return {name: row[name] for name in names} | {
        "class": cls,
        "reason": reason,
        "exit_reason": row["exit_reason"],
        "scheduler": [*([] if end is None else [end]), *scheduler_word(root, row)],
    }


def _reason(row: Record) -> tuple[str | None, str]:
    """Class of an attempt's end, and the end in words."""
    state, text = row["state"], row["exit_reason"] or ""
    if state == TaskState.DONE:
        return None, "done"
    if state == TaskState.DISPATCHED:
        return None, "under way, or its controller is dead"
    if text in reasons.INTERRUPTED:
        return None, f"{text}: no failure, it counts against nothing"
    known = FailureClass.NODE if state == TaskState.LOST else None
    cls, cause = classified(
        Mishap(what="retried", stage="", failure_class=known, head=text, tail=text, count=1)
    )
    return cls, f"lost with its worker: {cause}" if state == TaskState.LOST else cause


def scheduler_word(root: Path, row: Record) -> list[str]:
    """The last lines that the batch system wrote about the block of an attempt; empty if there are none."""
    block, since = row["block"], row["start"] or row["dispatched"]
    if block is None:
        return []
    files: dict[float, list[Path]] = {}
    for path in (root / "parsl").glob("**/submit_scripts/parsl.*"):
        found = _BLOCK.match(path.name)
        written = path.suffix in (".err", ".out", ".stderr", ".stdout")
        if found and written and (found["pool"], found["block"]) == (row["executor"], str(block)):
            files.setdefault(_sent(path, found["time"]), []).append(path)
    # Every controller counts its blocks from 0: the last one sent before the attempt is meant.
    sent = max((moment for moment in files if moment <= since), default=None)
    if sent is None:
        return []
    return [line for path in sorted(files[sent]) for line in tail(path)][-LOG_LINES:]


def _sent(path: Path, named: str | None) -> float:
    """When a block was sent: as its files are named, or when its script was written."""
    if named is not None:
        return float(named)
    scripts = [path.with_suffix(suffix) for suffix in (".slurm", ".pbs", ".sh")]
    return min((script.stat().st_mtime for script in scripts if script.exists()), default=0.0)


def tail(path: Path) -> list[str]:
    """The last lines of a file that are not empty; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LOG_LINES:]


def _log(root: Path, attempts: Sequence[Record]) -> dict[str, Any] | None:
    """The end of the newest log that holds anything; of a bug that left none, its recorded traceback."""
    for attempt in reversed(attempts):
        lines = tail(root / attempt["log"]) if attempt["log"] else []
        if lines:
            return {"attempt": attempt["number"], "path": str(root / attempt["log"]), "lines": lines}
    for attempt in reversed(attempts):
        text = attempt["exit_reason"] or ""
        if len(text.splitlines()) > 1:
            lines = [line for line in text.splitlines() if line.strip()]
            return {"attempt": attempt["number"], "path": None, "lines": lines[-LOG_LINES:]}
    return None


def _failure(task: Record, attempts: Sequence[Record]) -> dict[str, Any] | None:
    """Class and cause of what went wrong last, with what hpcal does about that class."""
    text = task["error"]
    if text:
        cls, cause = classified(
            Mishap(
                what="task", stage=task["kind"], failure_class=task["failure_class"], head=text, tail=text,
                count=1,
            )
        )  # fmt: skip
    else:
        cls, cause = next(((a["class"], a["reason"]) for a in reversed(attempts) if a["class"]), (None, ""))
    if cls is None:
        return None
    return {"class": cls, "cause": cause, "answer": policy(FailureClass(cls))}


def policy(failure: FailureClass) -> str:
    """What hpcal does about a class of failures, in a sentence."""
    found = POLICIES[failure]
    retry = "it is not tried again" if found.retry is None else f"it is tried again{_AGAIN[found.retry]}"
    end = _END[found.structure]
    task = "its stage stops" if found.task is Answer.STOP else "the task is given up"
    return f"{retry}; in the end a structure is {end}, and {task}"


_AGAIN: Final[Mapping[Answer, str]] = {
    Answer.AGAIN: ", up to tasks.max_failures",
    Answer.LARGER: " in a larger slot, up to tasks.max_failures or the largest pool",
    Answer.ELSEWHERE: ", wherever there is room, up to tasks.max_losses; a host that fails several in a row "
    "is set aside",
}
_END: Final[Mapping[Answer, str]] = {
    Answer.REJECT: "rejected with the reason",
    Answer.QUARANTINE: "set aside with the reason",
}

# What to do


def _next(found: Record, campaign: str, root: str) -> list[str]:
    task, failure = found["task"], found["failure"]
    runs = campaign == CampaignState.RUNNING
    steps = []
    if task["state"] in (TaskState.QUEUED, TaskState.DISPATCHED, TaskState.LOST):
        steps.append(
            f"nothing: it is under way; look on with `hpcal status {root} --watch`"
            if runs
            else f"it goes on with the campaign: `hpcal resume {root}`"
        )
    if failure is not None and task["state"] == TaskState.FAILED:
        steps.append(ADVICE[FailureClass(failure["class"])].format(root=root))
        if not runs and campaign != CampaignState.FINISHED:
            steps.append(f"then go on with `hpcal resume {root}`")
    elif failure is not None and task["state"] == TaskState.DONE:
        steps.append("nothing: a later attempt was successful")
    away = [s for s in found["structures"] if s["state"] in _TURNED_AWAY]
    if away:
        steps.append(f"the whole story of a structure: `hpcal trace {root} {away[-1]['id']}`")
        classes = Counter(r["failure_class"] for r in found["rejections"])
        steps += [ADVICE[FailureClass(cls)].format(root=root) for cls in classes if cls is not None]
    if any(s["state"] == StructureState.QUARANTINED for s in away):
        steps.append(
            "what is quarantined is for you to look at: it is neither learned from nor tried again, and its "
            "reason says what is in doubt"
        )
    return list(dict.fromkeys(steps)) or ["nothing: it is done"]


_TURNED_AWAY: Final = (StructureState.REJECTED, StructureState.QUARANTINED)

ADVICE: Final[Mapping[FailureClass, str]] = {
    FailureClass.INPUT: "single structures need nothing; of many, correct the file or the settings that they "
    "come from (elements, charge and multiplicity, `label.checks.overlap`)",
    FailureClass.PHYSICS: "single structures need nothing; of many, sample closer to equilibrium (lower "
    "`temperature_K`), or see whether method and `label.checks` suit them; `hpcal run CAMPAIGN "
    "--accept-changes` goes on with a changed file",
    FailureClass.RESOURCE: "give the workers more room in the site file: fewer `max_workers_per_node`, a "
    "longer `walltime`, or a pool of more memory named as `larger`; a training: raise `tasks.train_seconds`",
    FailureClass.NODE: "look at the host: its disk, its memory, what its scheduler says; another site can go "
    "on: `hpcal resume {root} --site SITE`",
    FailureClass.BUG: "the end of the traceback says where: correct the plugin that it names, or report it "
    "to hpcal's maintainers with the whole log",
}


def why_text(found: Record) -> str:
    """The answer of :func:`why` as text for a terminal."""
    task, failure, log = found["task"], found["failure"], found["log"]
    sections: list[tuple[str, Sequence[str]]] = [
        (f"task {task['id']} ({task['kind']}): {task['state']}", [found["does"], _about(task)]),
        ("attempts", [line for a in found["attempts"] for line in _attempt_lines(a)]),
    ]
    if failure is not None:
        sections.append(("failure", [f"{failure['class']}: {failure['cause']}", failure["answer"]]))
    sections.append(("structures", _structure_lines(found)))
    if log is not None:
        where = log["path"] or f"attempt {log['attempt']}, as it was recorded"
        sections.append((f"end of the log ({where})", log["lines"]))
    sections.append(("what to do", found["next"]))
    return "\n".join(
        line for title, content in sections if content for line in (title, *(f"  {c}" for c in content))
    )


def _about(task: Record) -> str:
    counted = {"failures": task["failures"], "losses": task["losses"]}
    parts = [f"pool {task['pool']}", f"made {_when(task['created'])}"]
    parts += [f"ended {_when(task['finished'])}"] if task["finished"] is not None else []
    return ", ".join([*parts, *(f"{n} {name}" for name, n in counted.items() if n)])


def _attempt_lines(a: Record) -> list[str]:
    place = f"{a['host']}, process {a['pid']}" if a["host"] else "host unknown"
    block = f", block {a['block']}" if a["block"] is not None else ""
    spent = f", {a['seconds']:.1f} s" if a["seconds"] is not None else ""
    cls = f" ({a['class']})" if a["class"] else ""
    head = (
        f"{a['number']}. {a['state']} in pool {a['executor']} on {place}{block}, controller {a['epoch']}, "
        f"{_when(a['start'] or a['dispatched'])} to {_when(a['end'])}{spent}"
    )
    lines = [head] if a["reason"] == "done" else [head, f"   {a['reason']}{cls}"]
    return [*lines, *(f"   batch system: {line}" for line in a["scheduler"])]


def _structure_lines(found: Record) -> list[str]:
    """Structures that were turned away one by one, the others counted by their state."""
    turned = {r["structure_id"]: r for r in found["rejections"]}
    lines, others = [], Counter[str]()
    for s in found["structures"]:
        if s["state"] in _TURNED_AWAY:
            rejection = turned.get(s["id"])
            reason = s["reason"] if rejection is None else f"{rejection['code']}: {rejection['message']}"
            lines.append(f"{s['id']} {s['state']}: {reason}")
        else:
            others[s["state"]] += 1
    more = len(lines) - SHOWN
    lines = lines[:SHOWN] + ([f"and {more} more; see --json"] if more > 0 else [])
    return [*([", ".join(f"{n} {state}" for state, n in others.items())] if others else []), *lines]


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
