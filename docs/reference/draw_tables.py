"""Draws the tables of the store and which of them refer to which, as SVG, from the metadata alone.

Tables stand in two columns with a track for each table that others refer to between them. A foreign
key is a line from its row to the track of its table, and each track ends in an arrow at that table:
so lines cross at right angles only, and none runs through a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from textwrap import wrap
from typing import Final
from xml.sax.saxutils import escape

from sqlalchemy import MetaData, Table

LEFT: Final = {
    "structure": ("state", "origin", "split", "hash", "fingerprint", "generation", "reason"),
    "score": ("purpose", "metric", "value", "threshold", "force_rmse"),
    "selection": ("decision", "rule", "value", "threshold", "competitors", "reason"),
    "task": ("kind", "pool", "state", "inputs", "failure_class", "error"),
    "label": ("seq", "split", "split_seq", "energy", "forces", "diagnostics", "retracted"),
    "dataset": ("generation", "last_seq", "n_train", "n_validation", "origins"),
    "ensemble": ("generation", "revision", "state", "hash", "threshold", "decision", "errors"),
    "level_of_theory": ("hash", "record"),
    "event": ("time", "epoch", "kind", "message"),
}
"""The left column from top to bottom, the flow first, with the columns that tell most."""
RIGHT: Final = {
    "walker": ("state", "sampler", "split", "step", "end_reason"),
    "segment": ("start_step", "end_step", "end_reason", "max_trigger"),
    "artifact": ("kind", "path", "sha256"),
    "attempt": ("number", "epoch", "state", "host", "exit_reason", "spool"),
    "rejection": ("failure_class", "code", "message"),
    "shard": ("path", "sha256", "first_seq", "last_seq", "count"),
    "model": ("member", "seed", "path", "sha256"),
    "campaign": ("state", "spec", "site", "schema_version", "lease_epoch"),
}
BESIDE: Final = {
    "walker": "structure",
    "artifact": "selection",
    "attempt": "task",
    "rejection": "label",
    "shard": "dataset",
    "model": "ensemble",
    "campaign": "level_of_theory",
}
"""Tables of the right column that start at the height of one of the left."""
FLOW: Final = ("structure", "score", "selection", "task", "label", "dataset", "ensemble")

COLOURS: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#8A5A00",
    "#7B3FA0",
    "#C2185B",
    "#52606D",
    "#1A9BC4",
)
INK, SOFT, EDGE, PALE = "#1F2933", "#52606D", "#9AA5B1", "#D9E2EC"
LINE: Final = 18
BOX: Final = 268
TRACK: Final = 20
MARGIN: Final = 16
CHARACTERS: Final = 40


@dataclass(frozen=True, kw_only=True)
class Box:
    """A table on the page: its top left corner, and the heights of its keys; px.

    Attributes:
        told: lines with the names of other columns.
        keys: column and table referred to, with the height of the row's middle and whether the
            column may be empty.
    """

    name: str
    x: int
    y: int
    told: tuple[str, ...]
    keys: tuple[tuple[str, str, int, bool], ...]

    @property
    def middle(self) -> int:
        """Height of the middle of the title."""
        return self.y + LINE // 2 + 2

    @property
    def bottom(self) -> int:
        """Its lower edge."""
        return self.y + LINE * (1 + len(self.told) + len(self.keys)) + 10


@dataclass(frozen=True, kw_only=True)
class Track:
    """The line that gathers all references to a table: its middle and its ends; px."""

    x: int
    top: int
    bottom: int
    colour: str


def picture(metadata: MetaData) -> str:
    """The tables as SVG text, equal for equal tables.

    Raises:
        KeyError: a table that has no place here, or a named column that is gone.
    """
    tables = {name: table for name, table in metadata.tables.items() if name != "alembic_version"}
    unplaced = set(tables) - set(LEFT) - set(RIGHT)
    if unplaced:
        raise KeyError(f"give {', '.join(sorted(unplaced))} a place in {__file__}")
    targets = sorted({key.column.table.name for t in tables.values() for key in t.foreign_keys})
    right_x = MARGIN + BOX + TRACK * (len(targets) + 1)
    boxes = _boxes(tables, right_x)
    tracks = _tracks(boxes, targets, MARGIN + BOX)
    width, height = right_x + BOX + MARGIN, max(box.bottom for box in boxes.values()) + MARGIN
    body = [*_flow(boxes), *_lines(boxes, tracks, right_x)]
    for box in boxes.values():
        body += _drawn(box, tracks, right=box.x == right_x)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="12.5">'
    )
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *body, "</svg>"]) + "\n"


def _boxes(tables: dict[str, Table], right_x: int) -> dict[str, Box]:
    """Every table at its place; rows of the two columns are never at one height."""
    boxes: dict[str, Box] = {}
    y = {MARGIN: MARGIN, right_x: MARGIN + LINE // 2}
    for name, told in LEFT.items():
        pair = [other for other, left in BESIDE.items() if left == name]
        start = max([y[MARGIN], *(y[right_x] - LINE // 2 for _ in pair)])
        boxes[name] = _box(tables[name], told, MARGIN, start)
        y[MARGIN] = _next(boxes[name])
        for other in pair:
            y[right_x] = start + LINE // 2
            for member in _stack(other):
                boxes[member] = _box(tables[member], RIGHT[member], right_x, y[right_x])
                y[right_x] = _next(boxes[member])
    return boxes


def _stack(first: str) -> list[str]:
    """A table of the right column, and those below it up to the next that has a place of its own."""
    names = list(RIGHT)
    found = [first]
    for name in names[names.index(first) + 1 :]:
        if name in BESIDE:
            break
        found.append(name)
    return found


def _next(box: Box) -> int:
    """Where the next box begins: on the grid of lines, so that heights never meet."""
    return box.y + -(-(box.bottom + 16 - box.y) // LINE) * LINE


def _box(table: Table, told: Sequence[str], x: int, y: int) -> Box:
    lines = tuple(wrap(", ".join(table.c[name].name for name in told), CHARACTERS))
    keys: list[tuple[str, str, int, bool]] = []
    for column in table.c:
        for key in column.foreign_keys:
            height = y + LINE * (1 + len(lines) + len(keys)) + LINE // 2 + 6
            keys.append((column.name, key.column.table.name, height, bool(column.nullable)))
    return Box(name=table.name, x=x, y=y, told=lines, keys=tuple(keys))


def _tracks(boxes: dict[str, Box], targets: Sequence[str], left: int) -> dict[str, Track]:
    """Tracks in the order with the fewest crossings."""
    ends: dict[str, list[tuple[bool, int]]] = {name: [] for name in targets}
    for box in boxes.values():
        if box.name in ends:
            ends[box.name].append((box.x < left, box.middle))
        for _, target, height, _ in box.keys:
            ends[target].append((box.x < left, height))
    reach = {name: (min(h for _, h in found), max(h for _, h in found)) for name, found in ends.items()}

    def crossings(first: str, second: str) -> int:
        """Of lines that pass one of two tracks on the way to the other; ``first`` is on the left."""
        a, b = reach[first], reach[second]
        over_first = sum(from_left and a[0] <= h <= a[1] for from_left, h in ends[second])
        return over_first + sum(not from_left and b[0] <= h <= b[1] for from_left, h in ends[first])

    cost = {(a, b): crossings(a, b) for a, b in permutations(targets, 2)}
    order = min(
        permutations(targets),
        key=lambda names: sum(cost[a, b] for i, a in enumerate(names) for b in names[i + 1 :]),
    )
    colours = dict(zip(targets, COLOURS, strict=False))
    return {
        name: Track(
            x=left + TRACK * (place + 1), top=reach[name][0], bottom=reach[name][1], colour=colours[name]
        )
        for place, name in enumerate(order)
    }


def _lines(boxes: dict[str, Box], tracks: dict[str, Track], right_x: int) -> Iterator[str]:
    for track in tracks.values():
        yield _down(track)
    for box in boxes.values():
        right = box.x == right_x
        edge = box.x if right else box.x + BOX
        for _, target, height, optional in box.keys:
            track = tracks[target]
            dashes = ' stroke-dasharray="4 3"' if optional else ""
            yield from _across(edge, track, height, f' stroke-width="1.6"{dashes}')
            yield f'<circle cx="{track.x}" cy="{height}" r="3" fill="{track.colour}"/>'
        if box.name in tracks:
            track, y, back = tracks[box.name], box.middle, edge - 11 if right else edge + 11
            yield from _across(back, track, y, ' stroke-width="2.4"')
            yield _down(track)
            yield f'<path d="M{edge} {y}L{back} {y - 5}L{back} {y + 5}Z" fill="{track.colour}"/>'


def _down(track: Track) -> str:
    return (
        f'<path d="M{track.x} {track.top}L{track.x} {track.bottom}" stroke="{track.colour}" '
        'stroke-width="2.4" stroke-linecap="square"/>'
    )


def _across(edge: int, track: Track, y: int, style: str) -> Iterator[str]:
    """A line from a box to a track, with gaps in the tracks that it passes."""
    line = f'<path d="M{edge} {y}L{track.x} {y}"'
    yield f'{line} stroke="white" stroke-width="6"/>'
    yield f'{line} stroke="{track.colour}"{style}/>'


def _flow(boxes: dict[str, Box]) -> Iterator[str]:
    """Wide pale arrows from each step to the next."""
    x = MARGIN + BOX // 2
    for name, following in pairwise(FLOW):
        top, bottom = boxes[name].bottom, boxes[following].y
        yield (
            f'<path d="M{x - 7} {top}L{x + 7} {top}L{x + 7} {bottom - 10}L{x + 16} {bottom - 10}'
            f'L{x} {bottom - 1}L{x - 16} {bottom - 10}L{x - 7} {bottom - 10}Z" fill="{PALE}"/>'
        )


def _drawn(box: Box, tracks: dict[str, Track], *, right: bool) -> Iterator[str]:
    colour = tracks[box.name].colour if box.name in tracks else INK
    height = box.bottom - box.y
    yield (
        f'<rect x="{box.x}" y="{box.y}" width="{BOX}" height="{height}" rx="4" fill="white" stroke="{EDGE}"/>'
    )
    yield (
        f'<path d="M{box.x} {box.y + LINE + 4}L{box.x} {box.y + 4}a4 4 0 0 1 4 -4L{box.x + BOX - 4} {box.y}'
        f'a4 4 0 0 1 4 4L{box.x + BOX} {box.y + LINE + 4}Z" fill="{colour}"/>'
    )
    yield _text(box.x + 9, box.middle + 5, box.name, "white", ' font-weight="bold" font-size="13.5"')
    for number, line in enumerate(box.told):
        yield _text(box.x + 9, box.y + LINE * (number + 1) + 19, line, SOFT)
    for name, target, middle, _ in box.keys:
        if right:
            yield _text(box.x + 9, middle + 4, name, tracks[target].colour)
        else:
            yield _text(box.x + BOX - 9, middle + 4, name, tracks[target].colour, ' text-anchor="end"')


def _text(x: int, y: int, text: str, colour: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}"{more}>{escape(text)}</text>'
