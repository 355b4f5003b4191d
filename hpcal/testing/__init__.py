"""Conformance suite for parts, hpcal's own and third parties'.

One function a seam of :mod:`hpcal.core.protocols`. Each builds the part as hpcal does, tries its
promises, and raises :class:`ConformanceError`, an ``AssertionError`` that names the first promise
that is broken, by how much, and the tolerance. They need no test framework; see
``docs/how-to/plugins.md`` for their use from pytest.
"""

from hpcal.testing.conformance import ConformanceError
from hpcal.testing.generators import check_generator
from hpcal.testing.labelers import check_labeler
from hpcal.testing.metrics import check_metric
from hpcal.testing.potentials import Tolerances, check_potential
from hpcal.testing.samplers import check_sampler
from hpcal.testing.selectors import check_selector
from hpcal.testing.training import check_potential_kind

__all__ = [
    "ConformanceError",
    "Tolerances",
    "check_generator",
    "check_labeler",
    "check_metric",
    "check_potential",
    "check_potential_kind",
    "check_sampler",
    "check_selector",
]
