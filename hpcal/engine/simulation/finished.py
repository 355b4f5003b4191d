"""Labels that workers have finished: none may be lost, none asked for again."""

from __future__ import annotations

from pathlib import Path

from hpcal.core.codec import unpack
from hpcal.core.errors import FormatError
from hpcal.core.label import Label
from hpcal.engine.dispatch import Assignment
from hpcal.engine.simulation.invariants import Watch
from hpcal.engine.simulation.violation import Violation
from hpcal.engine.spool import read_spool


class FinishedLabels:
    """Whole label records in spools at moments at which the controller reads them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._structures: set[int] = set()

    def left_behind(self, root: Path) -> None:
        """A controller starts: it can read what attempts under way have left."""
        query = (
            "SELECT a.id, a.spool FROM attempt a JOIN task t ON t.id = a.task_id "
            "WHERE a.state = 'dispatched' AND t.kind = 'label'"
        )
        for attempt, spool in self._watch.rows(query):
            self.readable(attempt, root / spool)

    def readable(self, attempt: int, path: Path) -> None:
        """The controller is about to read a spool."""
        try:
            spool = read_spool(path)
        except FormatError:
            return
        if spool.attempt != attempt:
            return
        # A structure that was turned away before is not labelled any more.
        open_states = "SELECT id FROM structure WHERE state IN ('claimed', 'waiting', 'labelled')"
        still_open = {row for (row,) in self._watch.rows(open_states)}
        found = {value["structure_id"] for value in spool.values if isinstance(value.get("result"), Label)}
        self._structures |= found & still_open

    def asked_for(self, assignment: Assignment) -> None:
        """A labelling task goes out. Raises Violation if one of its labels is there already."""
        inputs = unpack(Path(assignment.payload).read_bytes())
        again = self._structures.intersection(item["id"] for item in inputs["structures"])
        if again:
            raise Violation(
                f"broken: no finished label is computed again; attempt {assignment.attempt_id} shall label "
                f"{sorted(again)}, whose labels were in spools that the controller had read"
            )

    def kept(self) -> None:
        """The campaign is finished. Raises Violation if one of them is in no row."""
        states = dict(self._watch.rows("SELECT id, state FROM structure"))
        lost = [(i, states[i]) for i in sorted(self._structures) if states[i] != "labelled"]
        if lost:
            raise Violation(
                "broken: no finished label is lost; there were labels, in spools that the controller had "
                f"read, of structures {lost}"
            )
