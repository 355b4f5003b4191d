"""One history: a campaign under seeded faults, with everything that it must keep checked at each step."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from hpcal.core.errors import (
    CampaignFailed,
    FencedError,
    Interrupted,
    StoreError,
    TransitionError,
)
from hpcal.engine import loop
from hpcal.engine.context import Context
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.loop import Controller
from hpcal.engine.simulation.campaigns import SITE, VARIANTS, Variant, variant
from hpcal.engine.simulation.dispatcher import SimulatedDispatcher
from hpcal.engine.simulation.faults import Rates
from hpcal.engine.simulation.finished import FinishedLabels
from hpcal.engine.simulation.hooks import Killed, Life, hooked
from hpcal.engine.simulation.invariants import Watch
from hpcal.engine.simulation.outcome import Outcome
from hpcal.engine.simulation.physics import Nature
from hpcal.engine.simulation.violation import Violation
from hpcal.engine.simulation.world import World
from hpcal.engine.start import begin, take_up
from hpcal.store.database import STORE_FILE

MAX_COMMITS: Final = 500
"""Transactions within which a campaign must finish once nothing goes wrong any more."""
RESUMED: Final = 6
"""Times that a campaign is resumed that stopped because all went wrong in a row."""
NOTHING_TO_LEARN: Final = "the bootstrap gave no label to learn from"


def run_history(seed: int, folder: Path, kinds: Path, outcome: Outcome | None = None) -> Outcome:
    """Plays one history; the same seed gives the same one.

    Args:
        folder: where the campaign runs; removed afterwards.
        kinds: folder of the kinds of campaigns, kept from history to history.
        outcome: is filled as the history goes on.

    Raises:
        Violation: something that must hold does not; its message ends with the command that
            plays this history again.
    """
    history = History(outcome or Outcome(seed=seed), folder / f"history-{seed}", kinds)
    try:
        with hooked(), history.virtual_time():
            history.play()
    except Violation as violation:
        command = f"python -m hpcal.engine.simulate --seed {seed} --verbose"
        tail = "\n".join(history.world.steps[-12:])
        raise Violation(f"{violation}\n{tail}\nto see it again: {command}") from violation
    finally:
        history.close()
        shutil.rmtree(history.root, ignore_errors=True)
    return history.outcome


class History:
    """The state of one history while it is played."""

    def __init__(self, outcome: Outcome, root: Path, kinds: Path) -> None:
        self.rng = random.Random(outcome.seed)
        self.root = root
        self.outcome = outcome
        self.variant: Variant = variant(self.rng.randrange(VARIANTS), kinds)
        rng = self.rng
        nature = Nature(
            seed=outcome.seed,
            level=_level(self.variant),
            rejected=rng.choice((0.0, 0.0, 0.15)),
            broken=rng.choice((0.0, 0.0, 0.2)),
            crossing=rng.choice((0.5, 1.2)),
            twins=rng.choice((0.0, 0.3)),
            saddles=rng.choice((0.0, 0.3)),
            moody=rng.choice((0.0, 0.5)),
            # Drawn apart: what else happens in a history does not depend on it.
            poison=random.Random(f"poison {outcome.seed}").choice((0.0, 0.0, 0.05, 0.15)),
        )
        self.world = World(
            rng=rng,
            nature=nature,
            rates=Rates.draw(rng),
            gather_s=rng.choice((0.5, 4.0, 12.0, 12.0, 12.0, 12.0)),
            steps=self.outcome.steps,
            diverging=random.Random(f"diverging {outcome.seed}").choice((0.0, 0.0, 0.2)),
            dawdling=random.Random(f"dawdling {outcome.seed}").choice((0.0, 0.0, 0.2)),
            on_work=self._on_work,
        )
        self.watch: Watch | None = None
        self.finished: FinishedLabels | None = None
        self._assignments: dict[int, Assignment] = {}
        self._left: int | None = None
        self._open: list[Life] = []

    def play(self) -> None:
        """Lives under faults, then one without, which must finish."""
        if self.rng.random() < 0.9:
            self.variant.copy(self.root)
            self._begin_watch()
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            if self._one_life() == "finished":
                break
        else:
            self.world.calm()
            self.world.say("from here on nothing goes wrong")
            self._left = MAX_COMMITS
            end = self._live(self._life())
            for _ in range(RESUMED if self.world.nature.poison else 0):
                # Several poisonous structures in a row look like a broken stage: somebody resumes.
                end = self._live(self._life()) if end == "failed" else end
            if end == "failed" and self.world.nature.poison and not self._ever_labelled():
                # Where nothing was ever labelled, structures that kill their workers look like a
                # broken machine: that the stage stops with its cause is what is promised.
                self.outcome.ends["nothing to learn from"] += 1
                return
            if end not in ("finished", "nothing to learn from"):
                raise Violation(f"broken: without faults the campaign finishes; it ended as {end}")
        self._check_end()

    def close(self) -> None:
        """Closes what is open."""
        self.outcome.fates.update(map(str, self.world.fates.elements()))
        for life in self._open:
            for store in life.stores:
                store.close()
        if self.watch is not None:
            self.outcome.commits = self.watch.looks
            self.outcome.without_a_member = self.watch.without_a_member
            self.watch.close()
        self.world.close()

    @contextmanager
    def virtual_time(self) -> Iterator[None]:
        """The controller's own clock is the virtual one, and its lease is shown by nobody."""
        world = self.world

        def sleep(seconds: float) -> None:
            world.advance(world.clock + seconds)

        with (
            patch.object(time, "time", lambda: world.clock),
            patch.object(time, "monotonic", lambda: world.clock),
            patch.object(time, "sleep", sleep),
            patch.object(loop, "BEAT_SECONDS", 3600.0),
        ):
            yield

    # ── lives of controllers ─────────────────────────────────────────────────────────────────

    def _one_life(self) -> str:
        chance = self.rng.random()
        if chance < 0.15 and self.watch is not None:
            return self._paused_and_woken()
        kill_at = 1 + int(self.rng.expovariate(1 / 90)) if chance < 0.75 else None
        return self._live(self._life(kill_at=kill_at))

    def _life(self, **how: Any) -> Life:
        world, rng = self.world, self.rng
        life = Life(
            self.root,
            store_full=lambda: rng.random() < world.rates.store_full,
            file_full=lambda: rng.random() < world.rates.file_full,
            on_commit=self._on_commit,
            **{"on_step": self._on_step, **how},
        )
        self._open.append(life)
        return life

    def _live(self, life: Life) -> str:
        """One controller; how it ended."""
        dispatcher = SimulatedDispatcher(
            self.world,
            self.variant.slots,
            virtual=self.variant.virtual,
            on_delivery=lambda reports: self._on_delivery(life, reports),
            on_submit=lambda assignment: self._on_submit(life, assignment),
            on_wait=lambda waiting: self._on_wait(life, waiting),
        )
        self._damage()
        try:
            with life.lived():
                end = self._run(life, dispatcher)
        finally:
            dispatcher.close()
            for store in life.stores:
                store.close()
        self.outcome.ends[end] += 1
        self.world.say(f"controller ended: {end}")
        return end

    def _damage(self) -> None:
        """Between two controllers a file of the campaign may lose its end."""
        if self.watch is None or self.rng.random() >= self.world.rates.damage:
            return
        tables = "SELECT path FROM shard UNION SELECT path FROM model WHERE path IS NOT NULL ORDER BY path"
        paths = [path for (path,) in self.watch.rows(tables)]
        if paths:
            file = self.root / self.rng.choice(paths)
            os.truncate(file, self.rng.randrange(file.stat().st_size))
            self.outcome.damaged += 1
            self.world.say(f"{file.name} is damaged")

    def _run(self, life: Life, dispatcher: SimulatedDispatcher) -> str:
        try:
            context = self._take_up(dispatcher)
            if self.finished is not None:
                self.finished.left_behind(self.root)
            reason = Controller(context).run()
            self.world.say(f"finished: {reason}")
            return "finished"
        except Killed as killed:
            self.outcome.kills[str(killed)] += 1
            return f"killed {killed}"
        except Interrupted:
            return "stopped"
        except FencedError:
            return "fenced"
        except CampaignFailed as failure:
            self.world.say(f"failed: {failure}")
            return "nothing to learn from" if self._nothing_to_learn(failure) else "failed"
        except (StoreError, OSError) as error:
            if not life.injected or isinstance(error, TransitionError):
                raise _crash(error) from error
            self.world.say(str(error))
            return "disk full"
        except Violation:
            raise
        except Exception as error:
            raise _crash(error) from error

    def _take_up(self, dispatcher: SimulatedDispatcher) -> Context:
        if self._begun():
            context = take_up(self.root, dispatcher)
        else:
            context, _ = begin(self.variant.spec, self.root, dispatcher, SITE)
        if self.watch is None:
            self._begin_watch()
        return context

    def _begun(self) -> bool:
        """Whether the folder holds a campaign; one that was killed at its very start holds none yet."""
        if not (self.root / STORE_FILE).is_file():
            return False
        with closing(sqlite3.connect(self.root / STORE_FILE)) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'campaign'").fetchall():
                return False
            return bool(store.execute("SELECT id FROM campaign").fetchall())

    def _begin_watch(self) -> None:
        self.watch = Watch(self.root, self.world.nature, self.variant.spec.quorum)
        self.finished = FinishedLabels(self.watch)
        self.watch.look()

    def _nothing_to_learn(self, failure: CampaignFailed) -> bool:
        if self.watch is None or NOTHING_TO_LEARN not in str(failure):
            return False
        labels = "SELECT id FROM label WHERE split IN ('train', 'validation') AND seq IS NOT NULL LIMIT 1"
        untried = (
            "SELECT id FROM structure WHERE origin IN ('minimum', 'given') "
            "AND state NOT IN ('dropped', 'quarantined') AND NOT EXISTS "
            "(SELECT 1 FROM task WHERE kind = 'bootstrap') LIMIT 1"
        )
        return not self.watch.rows(labels) and not self.watch.rows(untried)

    # ── a paused controller ──────────────────────────────────────────────────────────────────

    def _paused_and_woken(self) -> str:
        """One controller is paused, another takes over, the first wakes up and must change nothing."""
        paused, go, ended = threading.Event(), threading.Event(), threading.Event()
        ends: list[str | BaseException] = []

        def pause() -> None:
            self.world.say("the controller is paused")
            paused.set()
            go.wait()
            self.world.say("the paused controller wakes up")

        def live() -> None:
            try:
                ends.append(self._live(first))
            except BaseException as error:
                ends.append(error)
            finally:
                ended.set()
                paused.set()

        # Right after a transaction, files are still to follow what was written.
        often = ("committed", 1 + int(self.rng.expovariate(1 / 6)))
        pause_at = often if self.rng.random() < 0.6 else ("any", 1 + int(self.rng.expovariate(1 / 60)))
        first = self._life(pause_at=pause_at, on_pause=pause)
        thread = threading.Thread(target=live, name="paused controller")
        thread.start()
        paused.wait()

        def wake() -> None:
            before = self._what_is_there()
            go.set()
            thread.join()
            self._check_woken(ends, before)

        try:
            if ended.is_set():
                return _end_of(ends)
            return self._taken_over(wake, go)
        finally:
            go.set()
            thread.join()

    def _ever_labelled(self) -> bool:
        query = "SELECT 1 FROM label WHERE attempt_id IS NOT NULL LIMIT 1"
        return self.watch is not None and bool(self.watch.rows(query))

    def _taken_over(self, wake: Any, go: threading.Event) -> str:
        wake_at = 3 + int(self.rng.expovariate(1 / 40))

        def on_step(kind: str) -> None:
            if not go.is_set() and second.steps >= wake_at and kind != "before a commit":
                if second.in_transaction:
                    return
                # The lease has been taken, or the first would still be right to write.
                if second.counts["after the lease"]:
                    wake()
            self._on_step(kind)

        second = self._life(on_step=on_step)
        end = self._live(second)
        if not go.is_set() and second.counts["after the lease"]:
            wake()
        return end

    def _what_is_there(self) -> tuple[Any, ...]:
        """The store's version, and the files of attempts under way."""
        if self.watch is None:
            return ()
        version = self.watch.rows("PRAGMA data_version")
        spools = [path for (path,) in self.watch.rows("SELECT spool FROM attempt WHERE state = 'dispatched'")]
        files = {name for spool in spools for name in (spool, spool.replace(".spool", ".task"))}
        return version, {name for name in files if (self.root / name).exists()}

    def _check_woken(self, ends: Sequence[str | BaseException], before: tuple[Any, ...]) -> None:
        end, now = _end_of(ends), self._what_is_there()
        if end not in ("fenced", "finished", "stopped", "failed", "nothing to learn from"):
            raise Violation(f"broken: a controller that was taken over is fenced off; it ended as {end}")
        if now[0] != before[0]:
            raise Violation("broken: a controller that was taken over writes nothing; it wrote")
        if before[1] - now[1]:
            raise Violation(
                "broken: a controller that was taken over leaves the files of the next one alone; it removed "
                f"{sorted(before[1] - now[1])}"
            )

    # ── what is looked at ────────────────────────────────────────────────────────────────────

    def _on_step(self, kind: str) -> None:
        if self.rng.random() < self.world.rates.stop and kind != "before the store is opened":
            self.world.say("somebody asks for an orderly stop")
            os.close(os.open(self.root / "stop", os.O_CREAT, 0o666))

    def _on_commit(self) -> None:
        if self.watch is not None:
            self.watch.look()
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Violation(f"broken: without faults the campaign finishes within {MAX_COMMITS} steps")

    def _on_work(self, attempt: int, calls: int) -> None:
        if self.watch is not None:
            self.watch.spent(attempt, calls)

    def _on_submit(self, life: Life, assignment: Assignment) -> None:
        self._assignments[assignment.attempt_id] = assignment
        if assignment.kind != "label" or life.woken:
            return
        if self.finished is not None:
            self.finished.asked_for(assignment)

    def _on_wait(self, life: Life, dispatcher: SimulatedDispatcher) -> None:
        if self.watch is None or life.woken:
            return
        query = "SELECT id, spool FROM attempt WHERE state = 'dispatched'"
        lost = [row for row in self.watch.rows(query) if row[0] not in dispatcher.outstanding]
        if lost:
            raise Violation(f"broken: every open attempt is under way; these are not: {lost}")

    def _on_delivery(self, life: Life, reports: Sequence[Report]) -> None:
        for report in reports:
            assignment = self._assignments[report.attempt_id]
            self.world.say(f"report of attempt {report.attempt_id} ({assignment.kind}): {_word(report)}")
            if assignment.kind == "label" and self.finished is not None and not life.woken:
                self.finished.readable(assignment.attempt_id, Path(assignment.spool))

    def _check_end(self) -> None:
        if self.watch is None:
            raise Violation("broken: a campaign begins")
        self.watch.look()
        self.watch.finished(2 * self.variant.spec.file.tasks.max_losses)
        if self.finished is not None:
            self.finished.kept()


def _level(kind: Variant) -> Any:
    from hpcal.engine.pairing import build_labeler

    return build_labeler(kind.spec).level


def _word(report: Report) -> str:
    if report.lost:
        return "lost"
    if report.interrupted:
        return "stopped"
    return f"failed ({report.failure})" if report.failure else "done"


def _crash(error: BaseException) -> Violation:
    where = "".join(traceback.format_exception(error)[-6:])
    return Violation(
        f"broken: the controller ends in good order; it raised {type(error).__name__}: {error}\n{where}"
    )


def _end_of(ends: Sequence[str | BaseException]) -> str:
    (end,) = ends
    if isinstance(end, BaseException):
        raise end
    return end


def measure(seeds: Sequence[int], folder: Path, kinds: Path) -> tuple[Outcome, float]:
    """Plays several histories; their sums, and the seconds that they took. Raises Violation."""
    total, began = Outcome(seed=seeds[0]), time.perf_counter()
    # Most objects of this process are modules that stay: looking through them costs a tenth.
    gc.collect()
    gc.freeze()
    for seed in seeds:
        total.add(run_history(seed, folder, kinds))
    return total, time.perf_counter() - began
