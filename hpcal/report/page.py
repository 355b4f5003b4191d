"""The parts that a page is made of; everything that comes from a row is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hpcal.report.canvas import Picture
from hpcal.report.style import CSS

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page: its anchor, title, and HTML that is safe already."""

    anchor: str
    title: str
    body: str


def page(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """A whole page that needs nothing outside itself; header, bodies and footer are HTML."""
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    bodies = "\n".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.body}</section>' for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header class="top">{header}</header>\n<nav aria-label="sections"><div>{links}</div></nav>\n'
        f"<main>\n{bodies}\n</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def text(content: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(content)}</p>\n"


def figure(picture: Picture, caption: str) -> str:
    """A picture with its caption."""
    return (
        f'<figure><img src="{picture.uri}" alt="{escape(picture.alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """A row of (value, what it is)."""
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for v, n in entries)
    return f'<div class="tiles">{cells}</div>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], source: str) -> str:
    """A table; numbers stand to the right, and the caption says which rows of the store it sums up."""
    if not rows:
        return text(f"Nothing yet ({source}).", "nothing")
    right = [
        all(isinstance(row[i], int | float) or row[i] is None or _numeric(str(row[i])) for row in rows)
        for i in range(len(head))
    ]
    wide = [not r and max(len(str(row[i])) for row in rows) > 40 for i, r in enumerate(right)]
    kinds = [' class="n"' if r else ' class="wide"' if w else "" for r, w in zip(right, wide, strict=True)]
    cells = "".join(f"<th{kind}>{escape(h)}</th>" for h, kind in zip(head, kinds, strict=True))
    titles = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    lines = "\n".join(
        "<tr>" + "".join(f"<td{k}>{escape(shown(c))}</td>" for c, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>Source: {escape(source)}</caption>'
        f"{titles}\n<tbody>{lines}</tbody></table></div>\n"
    )


def folded(summary: str, body: str) -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def pairs(entries: Mapping[str, Cell], source: str) -> str:
    """A table of names and values."""
    return table(("", ""), [(name, shown(value)) for name, value in entries.items()], source)


def shown(value: Cell) -> str:
    """A value as people read it; a dash where nothing is known."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else value


def duration(seconds: float) -> str:
    """A time in the unit that suits its length."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def number_of(n: int, thing: str) -> str:
    """A number with its noun."""
    return f"{shown(n)} {thing}{'' if n == 1 else 's'}"


def _numeric(value: str) -> bool:
    return value.replace("–", "0").replace("%", "").replace(".", "").replace("-", "").strip().isdigit()
