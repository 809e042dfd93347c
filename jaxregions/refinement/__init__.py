"""Monte Carlo of expected refinement: random parameters, BatchNorm beside its absence."""

from jaxregions.refinement.estimate import (
    RefinementEstimate,
    SamplingStatus,
    TwinEstimates,
    expected_refinement,
)
from jaxregions.refinement.statistics import Estimate

__all__ = [
    "Estimate",
    "RefinementEstimate",
    "SamplingStatus",
    "TwinEstimates",
    "expected_refinement",
]
