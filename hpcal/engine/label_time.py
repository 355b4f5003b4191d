"""How long a label will take, learned from those that are done.

The time t of a label of a structure of size n follows a power law with scatter::

    log t = a + b log n + e,    e ~ N(0, s²),    b ~ N(PRIOR_EXPONENT, PRIOR_EXPONENT_ERROR²)

n counts basis functions where labels tell how many they had, else atoms. a, b and s are fitted
with Huber's weights, so that a label that was held up or audited does not lead astray.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.store.measurements import LabelSeconds

PRIOR_EXPONENT: Final = 2.0
PRIOR_EXPONENT_ERROR: Final = 0.75
"""SCF and gradient with density fitting grow with the power 1.9 to 2.3 from water to glycine."""
PRIOR_SPREAD: Final = 0.4
PRIOR_LABELS: Final = 4
"""Scatter of log t, and how many labels this opinion of it is worth."""
LEAST_SPREAD: Final = 0.02
ENOUGH: Final = 5
"""Labels from which on times are foretold."""
SURE: Final = 2.0
"""Standard deviations by which a label is out of reach before its structure is refused."""
HUBER: Final = 1.345
"""Standard deviations beyond which a label counts less."""
_COUNT: Final = re.compile(r"([A-Z][a-z]?)(\d*)")


@dataclass(frozen=True, kw_only=True)
class LabelTimes:
    """The time of a label by the composition of its structure.

    Attributes:
        middle: log of the size at which ``level`` is given.
        level: log of the seconds there.
        exponent: b.
        exponent_error: standard deviation of b.
        spread: s, of log t.
        labels: how many it was learned from.
        functions: basis functions of an atom by element; empty if sizes are numbers of atoms.
        other: basis functions of an atom of an element that was not seen.
    """

    middle: float
    level: float
    exponent: float
    exponent_error: float
    spread: float
    labels: int
    functions: Mapping[str, float] = field(default_factory=dict)
    other: float = 1.0

    def size(self, formula: str) -> float:
        """N of a Hill formula: atoms, or basis functions."""
        return _size(formula, self.functions, self.other)

    def expected(self, formula: str) -> float:
        """Mean seconds of a label."""
        away, spread = self._away(formula), self.spread
        return math.exp(min(self.level + self.exponent * away + spread**2 / 2, 700.0))

    def least(self, formula: str) -> float:
        """Seconds below which a label almost certainly does not end."""
        away = self._away(formula)
        error = math.hypot(self.spread, self.exponent_error * away)
        return math.exp(min(self.level + self.exponent * away - SURE * error, 700.0))

    def _away(self, formula: str) -> float:
        return math.log(self.size(formula)) - self.middle


def fit(measured: LabelSeconds) -> LabelTimes | None:
    """The times of labels as learned from some, or None from fewer than ``ENOUGH``."""
    if len(measured) < ENOUGH:
        return None
    functions, other = _functions(measured)
    formulas = measured.formula
    sizes = {f: _size(f, functions, other) for f in set(formulas)}
    x = np.log([sizes[f] for f in formulas])
    y = np.log(measured.seconds)
    weights = np.ones(len(y))
    exponent, spread = PRIOR_EXPONENT, PRIOR_SPREAD
    middle = level = information = 0.0
    for _ in range(20):
        middle, level = float(np.average(x, weights=weights)), float(np.average(y, weights=weights))
        dx, dy = x - middle, y - level
        information = float((weights * dx**2).sum()) / spread**2 + PRIOR_EXPONENT_ERROR**-2
        pull = float((weights * dx * dy).sum()) / spread**2 + PRIOR_EXPONENT / PRIOR_EXPONENT_ERROR**2
        exponent = pull / information
        away = np.abs(dy - exponent * dx)
        spread = _spread(away)
        weights = np.minimum(1.0, HUBER * spread / np.maximum(away, 1e-12))
    return LabelTimes(
        middle=middle,
        level=level,
        exponent=exponent,
        exponent_error=information**-0.5,
        spread=spread,
        labels=len(y),
        functions=functions,
        other=other,
    )


def composition(formula: str) -> dict[str, int]:
    """Atoms by element of a Hill formula."""
    return {element: int(count or 1) for element, count in _COUNT.findall(formula)}


def _spread(away: FloatArray) -> float:
    """Scatter by the median of distances, which few outliers do not move, and the prior's."""
    seen, n = 1.4826 * float(np.median(away)), len(away)
    joined = (n * seen**2 + PRIOR_LABELS * PRIOR_SPREAD**2) / (n + PRIOR_LABELS)
    return max(LEAST_SPREAD, math.sqrt(joined))


def _size(formula: str, functions: Mapping[str, float], other: float) -> float:
    return max(1.0, sum(k * functions.get(e, other) for e, k in composition(formula).items()))


def _functions(measured: LabelSeconds) -> tuple[dict[str, float], float]:
    """Basis functions of an atom by element, and of one that was not seen.

    The functions of a structure are the sum of its atoms'. Where the compositions seen do not tell
    the elements apart, they stay as near as possible to the mean over all atoms.
    """
    if not np.isfinite(measured.basis_functions).all():
        return {}, 1.0
    told = dict(zip(measured.formula, measured.basis_functions.tolist(), strict=True))
    counts = [composition(formula) for formula in told]
    elements = sorted({element for count in counts for element in count})
    table = np.array([[count.get(element, 0) for element in elements] for count in counts], dtype=float)
    total = np.array(list(told.values()))
    mean = float(total.sum() / table.sum())
    beside, *_ = np.linalg.lstsq(table, total - table.sum(axis=1) * mean, rcond=1e-9)
    return {e: max(1.0, mean + float(b)) for e, b in zip(elements, beside, strict=True)}, mean


def chunks(seconds: Sequence[float], *, aim: float, most: int) -> list[int]:
    """How many structures go into each task, in their order.

    Args:
        seconds: expected time of each structure.
        aim: seconds that a task is to take.
        most: structures in a task.
    """
    sizes: list[int] = []
    spent = 0.0
    for one in seconds:
        if not sizes or sizes[-1] >= most or spent + one > aim:
            sizes.append(0)
            spent = 0.0
        sizes[-1] += 1
        spent += one
    return sizes
