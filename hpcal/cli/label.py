"""``hpcal label``: labels for the structures of a file, without a campaign."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from hpcal.cli.label_states import Compared, Item, compared, items_of
from hpcal.cli.stages import read_block, record_path, refuse_place, stopping, write_record
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, FormatError, InputError, Interrupted, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.engine.campaign import LabelSpec, label_spec
from hpcal.engine.spool import SpoolWriter, read_spool
from hpcal.engine.states import State
from hpcal.exchange.extxyz import LabelledFrame, read_labelled_frames, write_labelled
from hpcal.exchange.files import read_structures
from hpcal.exchange.xyz_frames import read_frames
from hpcal.labeling.make import ReadyLabeler, make_labeler

XYZ: Final = (".extxyz", ".xyz")
KEPT: Final = ("structure_id", "split", "origin", "generation", "uncertainty", "config_type")
"""Keys of a comment line that go from FILE to OUT."""

COMPARED: Final = ("not_kept", "held")
"""Statuses of labels that are left out of OUT, or for now, as only the lowest multiplicity is kept."""
STATUSES: Final = ("labelled", "rejected", "failed", *COMPARED)

Result = Label | Rejection


def label(file: Path, out: Path, settings: Path, *, threads: int) -> None:
    """Labels the structures of a file; goes on where an earlier call stopped.

    Raises:
        InputError: a file cannot be read, or OUT holds labels of another level.
        Interrupted: by a signal; what was labelled is kept.
        click.exceptions.Exit: with 1 if nothing was labelled.
    """
    if out.suffix.lower() not in XYZ:
        raise InputError(f"{out}: labels are written as extended XYZ; give a name ending in .extxyz")
    refuse_place(out, file, settings)
    document, folder = read_block(settings)
    spec = label_spec(document, (), folder)
    structures = read_structures(file)
    if spec.screen is not None:
        spec.screen.check_coverage(structures)
    with make_labeler(
        spec.part.name, spec.part.settings, spec.checks, screen=spec.screen, threads=threads
    ) as labeler:
        items = items_of(spec.states, structures, labeler.level)
        run = Run(out=out, spec=spec, level=labeler.level)
        run.adopt({item.hash for item in items})
        with stopping() as stop:
            interrupted = _label_all(labeler, items, run, stop)
    labelled = run.write(file, items)
    if interrupted:
        raise Interrupted(f"stopped with {labelled} structures labelled; the same command goes on")
    if not labelled:
        raise click.exceptions.Exit(1)


def _label_all(labeler: ReadyLabeler, items: Sequence[Item], run: Run, stop: Callable[[], bool]) -> bool:
    """Labels what has no result yet; whether it was interrupted."""
    deadline = Deadline(stop=stop)
    try:
        with SpoolWriter(run.new_spool(), attempt=0, epoch=0) as spool:
            for item in items:
                structure, name = item.structure, _name(item, run.spec)
                if item.hash in run.results:
                    continue
                if stop():
                    return True
                try:
                    result = labeler.label(structure, deadline)
                except TaskFailure as failure:
                    if stop():
                        return True
                    run.failures[item.hash] = failure
                    click.echo(f"{name}: failed ({failure.failure_class}): {failure}", err=True)
                    continue
                spool.append({"identity": run.identity, "hash": item.hash, "result": result})
                run.results[item.hash] = result
                if isinstance(result, Rejection):
                    click.echo(f"{name}: {_rejected(result)}", err=True)
    except KeyboardInterrupt:
        return True
    return False


def _name(item: Item, spec: LabelSpec) -> str:
    return f"frame {item.frame}" + (f" with {State.of(item.structure)}" if spec.states is not None else "")


def _rejected(result: Rejection) -> str:
    return f"rejected ({result.failure_class}, {result.code}): {result.message}"


@dataclass(kw_only=True)
class Run:
    """The results of this call and of earlier ones.

    Attributes:
        out: the file of labelled structures; records go beside it.
        results: by content hash of the structure.
        failures: calculations that broke, likewise; they are tried again next time.
    """

    out: Path
    spec: LabelSpec
    level: LevelOfTheory
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, TaskFailure] = field(default_factory=dict)
    _spools: list[Path] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """What has to be the same for results to stand side by side: level, checks, screening, states."""
        screened = [] if self.spec.screen is None else [self.spec.screen.as_dict()]
        states = [] if self.spec.states is None else [self.spec.states.model_dump(mode="json")]
        parts = [self.level.as_dict(), self.spec.checks.model_dump(mode="json"), *screened, *states]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def adopt(self, wanted: Set[str]) -> None:
        """Takes over what earlier calls have finished.

        Args:
            wanted: content hashes of the structures of FILE.

        Raises:
            InputError: it is of another level of theory or other structures.
            FormatError: the records are not from this command.
        """
        records = record_path(self.out)
        if records.exists():
            self._adopt_records(records)
        self._spools = sorted(self.out.parent.glob(f"{self.out.name}.spool-*"))
        for path in self._spools:
            for value in read_spool(path).values:
                self._same(value["identity"])
                self.results.setdefault(value["hash"], value["result"])
        others = len(self.results.keys() - wanted)
        if others:
            raise InputError(
                f"{self.out} has results of {others} structures that are not in the file: they would be "
                "lost; give another OUT"
            )

    def _adopt_records(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            self._same(data["identity"])
            records = {record["hash"]: record for record in data["results"]}
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} holds no records of `hpcal label` ({type(error).__name__}): it is not overwritten; "
                "give another OUT"
            ) from error
        frames = read_labelled_frames(self.out) if self.out.exists() else []
        for frame in frames:
            record = records.get(frame.structure.content_hash)
            if record is not None and record["status"] == "labelled":
                self.results[record["hash"]] = replace(
                    frame.label,
                    level=self.level,
                    diagnostics=record["diagnostics"],
                    qm_calls=record["qm_calls"],
                )
        for record in records.values():
            if record["status"] == "not_kept":
                # Its energy was compared; of what is not in OUT nothing else is needed.
                self.results[record["hash"]] = Label(
                    energy=record["energy_ev"],
                    forces=None,
                    level=self.level,
                    diagnostics=record["diagnostics"],
                    qm_calls=record["qm_calls"],
                )
            if record["status"] == "rejected":
                self.results[record["hash"]] = Rejection(
                    failure_class=FailureClass(record["failure_class"]),
                    quarantine=record.get("quarantine", False),
                    **{key: record[key] for key in ("code", "message", "diagnostics", "qm_calls")},
                )

    def _same(self, identity: str) -> None:
        if identity != self.identity:
            raise InputError(
                f"{self.out} was labelled with other settings than these ({self.level}): two levels of "
                "theory are never mixed in one file; give another OUT"
            )

    def new_spool(self) -> Path:
        """A file for the results of this call as they come."""
        taken = [int(path.name.rpartition("-")[2]) for path in self._spools]
        path = self.out.with_name(f"{self.out.name}.spool-{max(taken, default=0) + 1}")
        self._spools.append(path)
        return path

    def write(self, file: Path, items: Sequence[Item]) -> int:
        """Writes OUT and its records, and says what came of it; returns how many were labelled."""
        infos = _infos(file, max(item.frame for item in items))
        states = compared(self.spec.states, items, self.results)
        frames = [
            LabelledFrame(
                structure=item.structure, label=result, info={**infos[item.frame - 1], "frame": item.frame}
            )
            for item in items
            if isinstance(result := self.results.get(item.hash), Label)
            and item.hash not in states.not_kept
            and item.hash not in states.held
        ]
        if frames:
            write_labelled(self.out, frames)
        records = [
            self._record(item, states)
            for item in items
            if item.hash in self.results or item.hash in self.failures
        ]
        counts = Counter(record["status"] for record in records)
        summary: dict[str, Any] = {
            "file": str(file),
            "identity": self.identity,
            "level": self.level.as_dict(),
            "label": self.spec.as_dict(),
            "counts": {
                status: counts[status] for status in STATUSES if counts[status] or status not in COMPARED
            },
            "qm_calls": sum({record["hash"]: record["qm_calls"] for record in records}.values()),
            "results": records,
        }
        write_record(record_path(self.out), summary)
        for path in () if states.held else self._spools:
            path.unlink(missing_ok=True)
        done = (
            ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in summary["counts"].items() if n)
            or "none done"
        )
        where = f"{self.out}, " if frames else ""
        click.echo(f"{len(items)} structures: {done}; {where}{record_path(self.out)}")
        return len(frames)

    def _record(self, item: Item, states: Compared) -> Mapping[str, Any]:
        record: dict[str, Any] = {"frame": item.frame, "hash": item.hash}
        if self.spec.states is not None:
            record |= {"charge": item.structure.charge, "multiplicity": item.structure.multiplicity}
        result = self.results.get(item.hash)
        if isinstance(result, Label):
            left_out = {"status": "held"} if item.hash in states.held else {}
            if item.hash in states.not_kept:
                left_out = {"status": "not_kept", "message": states.not_kept[item.hash]}
            return {
                **record,
                "status": "labelled",
                **left_out,
                "energy_ev": result.energy,
                "diagnostics": dict(result.diagnostics),
                "qm_calls": result.qm_calls,
            }
        if isinstance(result, Rejection):
            return {
                **record,
                "status": "rejected",
                "failure_class": str(result.failure_class),
                "code": result.code,
                "quarantine": result.set_aside,
                "message": result.message,
                "diagnostics": dict(result.diagnostics),
                "qm_calls": result.qm_calls,
            }
        failure = self.failures[item.hash]
        return {
            **record,
            "status": "failed",
            "failure_class": str(failure.failure_class),
            "message": str(failure),
            "qm_calls": 0,
        }


def _infos(file: Path, count: int) -> list[dict[str, Any]]:
    """What FILE says of each structure and OUT keeps."""
    if file.suffix.lower() not in XYZ:
        return [{} for _ in range(count)]
    return [
        {key: value for key in KEPT if (value := frame.header.text(key)) is not None}
        for frame in read_frames(file)
    ]
