"""Exact affine-region geometry of piecewise-affine networks conditioned on a mini-batch."""

from jaxregions.activations import PiecewiseLinear
from jaxregions.arrangements import ArrangementCounts, count_arrangement, region_bracket
from jaxregions.batchnorm import (
    BatchHyperplanes,
    batch_hyperplanes,
    centroid,
    condition,
    without_batchnorm,
)
from jaxregions.density import log_density
from jaxregions.hyperplanes import (
    HitCounts,
    Hyperplanes,
    count_hits,
    dense_hyperplanes,
    distances,
    margins,
    meets,
    refines,
)
from jaxregions.windows import Window

__all__ = [
    "ArrangementCounts",
    "BatchHyperplanes",
    "HitCounts",
    "Hyperplanes",
    "PiecewiseLinear",
    "Window",
    "batch_hyperplanes",
    "centroid",
    "condition",
    "count_arrangement",
    "count_hits",
    "dense_hyperplanes",
    "distances",
    "log_density",
    "margins",
    "meets",
    "refines",
    "region_bracket",
    "without_batchnorm",
]
__version__ = "0.1.0"
