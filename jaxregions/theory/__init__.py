"""Expected refinement in closed form: an oracle that no estimator of this package enters into."""

from jaxregions.theory.breakpoints import breakpoint_hit_probability
from jaxregions.theory.conditions import Condition, Conditions, conditions
from jaxregions.theory.expected import (
    CrossingProbabilities,
    crossing_probabilities,
    expected_hits,
    expected_regions,
    expected_vertices,
    hit_probability,
    polygon_crossing_probabilities,
    regions_from_crossings,
)

__all__ = [
    "Condition",
    "Conditions",
    "CrossingProbabilities",
    "breakpoint_hit_probability",
    "conditions",
    "crossing_probabilities",
    "expected_hits",
    "expected_regions",
    "expected_vertices",
    "hit_probability",
    "polygon_crossing_probabilities",
    "regions_from_crossings",
]
