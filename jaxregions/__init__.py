"""Exact affine-region geometry of piecewise-affine networks conditioned on a mini-batch."""

from jaxregions import theory
from jaxregions.activations import PiecewiseLinear
from jaxregions.arrangements import ArrangementCounts, count_arrangement, region_bracket
from jaxregions.batches import BatchDependence, PartitionShift, Spread, batch_dependence
from jaxregions.batchnorm import (
    BatchHyperplanes,
    batch_hyperplanes,
    centroid,
    condition,
    without_batchnorm,
)
from jaxregions.density import log_density, soft_hits
from jaxregions.depth import (
    CriticalScales,
    StageHits,
    critical_scales,
    pull_back,
    stage_hits,
)
from jaxregions.engines.certificates import load_certificate, save_certificate
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
from jaxregions.parents import (
    Embedding,
    ParentRegion,
    ParentWindows,
    embedding,
    in_parent_region,
    parent_region,
)
from jaxregions.partitions import (
    Partition,
    StageTable,
    level_set,
    partition,
    stage_tables,
    to_dict,
    to_networkx,
)
from jaxregions.refinement import (
    Estimate,
    RefinementEstimate,
    SamplingStatus,
    TwinEstimates,
    expected_refinement,
)
from jaxregions.regions import (
    RegionCounts,
    Status,
    TreeEstimate,
    count_regions,
    estimate_regions,
)
from jaxregions.tracing import CPAFunction, NotPiecewiseAffineError, trace
from jaxregions.verification import Proven, proven_regions, verify
from jaxregions.windows import Window

__all__ = [
    "ArrangementCounts",
    "BatchDependence",
    "BatchHyperplanes",
    "CPAFunction",
    "CriticalScales",
    "Embedding",
    "Estimate",
    "HitCounts",
    "Hyperplanes",
    "NotPiecewiseAffineError",
    "ParentRegion",
    "ParentWindows",
    "Partition",
    "PartitionShift",
    "PiecewiseLinear",
    "Proven",
    "RefinementEstimate",
    "RegionCounts",
    "SamplingStatus",
    "Spread",
    "StageHits",
    "StageTable",
    "Status",
    "TreeEstimate",
    "TwinEstimates",
    "Window",
    "batch_dependence",
    "batch_hyperplanes",
    "centroid",
    "condition",
    "count_arrangement",
    "count_hits",
    "count_regions",
    "critical_scales",
    "dense_hyperplanes",
    "distances",
    "embedding",
    "estimate_regions",
    "expected_refinement",
    "in_parent_region",
    "level_set",
    "load_certificate",
    "log_density",
    "margins",
    "meets",
    "parent_region",
    "partition",
    "proven_regions",
    "pull_back",
    "refines",
    "region_bracket",
    "save_certificate",
    "soft_hits",
    "stage_hits",
    "stage_tables",
    "theory",
    "to_dict",
    "to_networkx",
    "trace",
    "verify",
    "without_batchnorm",
]
__version__ = "0.1.0"
