"""Drawing: one look for all pictures, and figures as SVG that stands alone."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hpcal.core.arrays import FloatArray, IntArray

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
VERMILLION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
SKY: Final = "#56B4E9"
YELLOW: Final = "#F0E442"
GREY: Final = "#8A94A0"
INK: Final = "#1F2933"
COLOURS: Final = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)
"""Told apart by colour-blind readers too (Okabe and Ito, jfly.uni-koeln.de/color)."""

MAX_POINTS: Final = 3000
WORST: Final = 200
"""Of more points than fit, the ones with the largest errors are always drawn."""

STYLE: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#C3CAD2",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8ECF0",
    "grid.linewidth": 0.8,
    "xtick.color": "#52606D",
    "ytick.color": "#52606D",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "hpcal",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn figure.

    Attributes:
        svg: the figure, with its fonts as paths.
        alt: what it shows, for readers who cannot see it.
    """

    svg: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The figure as a data URI, so that its ids cannot meet those of another one."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


def styled() -> Any:
    """A context in which figures have the common look."""
    return mpl.rc_context(STYLE)


def panels(columns: int, height: float = 3.4, width: float = 9.6) -> tuple[Figure, list[Any]]:
    """A figure with panels side by side, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def render(figure: Figure, alt: str) -> Picture:
    """A figure as a picture; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return Picture(svg=buffer.getvalue(), alt=alt)


def drawn(errors: FloatArray) -> IntArray:
    """Indices of the points to draw: all, or the worst and a seeded sample of the others."""
    n = len(errors)
    if n <= MAX_POINTS:
        return np.arange(n)
    order = np.argsort(-np.nan_to_num(np.abs(errors)), kind="stable")
    rng = np.random.Generator(np.random.Philox(n))
    others = rng.choice(order[WORST:], size=MAX_POINTS - WORST, replace=False)
    return np.sort(np.concatenate([order[:WORST], others]))
