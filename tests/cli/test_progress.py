"""What a running campaign shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.live import Live

from hpcal.cli.progress import LiveDisplay, PlainLines, Rate, busy, elapsed, observer, stands
from hpcal.engine.view import AuditErrors, EnsembleView, EntryView, View
from hpcal.store.transitions import EnsembleState

VIEW = View(
    labels=40,
    audit_labels=6,
    n_candidates=3,
    n_waiting=5,
    n_claimed=2,
    slots={"label": 2, "sample": 1},
    pools={"label": 4, "sample": 1},
    current=EnsembleView(id=1, generation=2, state=EnsembleState.PROMOTED, last_seq=30),
    newest=EnsembleView(id=2, generation=3, state=EnsembleState.TRAINING, last_seq=40),
    walkers=(EntryView(idle=(1, 2), alive=8),),
    audit=AuditErrors(count=7, force_rmse=0.0512, energy_rmse=0.00123),
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_output_has_a_line_a_message_with_the_time_since_the_start():
    out, clock = io.StringIO(), Clock()
    lines = PlainLines(out, clock)
    lines.message("one")
    clock.now += 75
    lines.message("two\nmore\nthe end")
    assert out.getvalue() == "[   0 s] one\n[  1:15] two … the end\n"


def test_plain_output_tells_where_it_stands_at_most_every_ten_seconds_and_only_news():
    out, clock = io.StringIO(), Clock()
    lines = PlainLines(out, clock)
    for _ in range(400):
        clock.now += 0.1
        lines.update(VIEW)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("[  10 s] generation 2 (generation 3 training), walkers 8, candidates 3")
    assert "audit RMSE 1.23 meV/atom 51.2 meV/Å (7)" in line


def test_output_that_nobody_reads_does_not_end_a_campaign():
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    PlainLines(Closed()).message("into the void")


def test_pools_are_shown_as_running_over_slots():
    assert busy(VIEW) == ["label 2/2 +2", "sample 1/1"]


def test_a_campaign_that_has_just_begun():
    assert dict(stands(View(seeds=(1, 2, 3)))) == {
        "generation": "none yet",
        "seeds": "3 to relax",
        "labels": "0 (0 audit)",
    }


def test_the_rate_is_that_of_the_last_two_minutes():
    rate = Rate()
    assert rate.at(0.0, 0) is None
    for second in range(1, 601):
        found = rate.at(float(second), second if second < 300 else 300 + 2 * (second - 300))
    assert found == pytest.approx(120.0, rel=0.02)


def test_the_live_display_shows_numbers_and_keeps_messages():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    clock = Clock()
    with Live(console=console, auto_refresh=False) as live:
        display = LiveDisplay(live, console, clock)
        clock.now += 5
        display.message("generation 2 promoted")
        display.update(VIEW)
        live.refresh()
    text = out.getvalue()
    assert "[   5 s] generation 2 promoted" in text
    assert "51.2 meV/Å" in text
    assert "label 2/2 +2" in text


def test_the_observer_fits_its_output():
    with observer(io.StringIO()) as found:
        assert isinstance(found, PlainLines)


def test_a_terminal_gets_the_live_display():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with observer(Terminal()) as found:
        assert isinstance(found, LiveDisplay)
        found.update(VIEW)


@pytest.mark.parametrize(("seconds", "text"), [(3.9, "   3 s"), (61, "  1:01"), (3723, "1:02:03")])
def test_elapsed(seconds, text):
    assert elapsed(seconds) == text
