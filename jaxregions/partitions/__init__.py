"""The cells of one window: geometry, patterns, affine maps, adjacency, level sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxregions._interrupts import interruptible
from jaxregions._progress import watching
from jaxregions.engines.frontier import ENGINES
from jaxregions.partitions.reading import level_set, to_dict, to_networkx
from jaxregions.partitions.records import Partition, StageTable
from jaxregions.partitions.refining import refined
from jaxregions.partitions.tables import stage_tables
from jaxregions.partitions.trees import grown
from jaxregions.regions import prepared
from jaxregions.windows import Window

__all__ = [
    "Partition",
    "StageTable",
    "level_set",
    "partition",
    "stage_tables",
    "to_dict",
    "to_networkx",
]


def partition(
    f: Callable[[Any], Any],
    window: Window,
    *,
    input_shape: tuple[int, ...] | None = None,
    affine: bool = True,
    max_regions: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
) -> Partition:
    """The cells of f in one open window, exactly.

    Args:
      f, input_shape, max_regions, max_seconds, progress: as in ``count_regions``.
      window: one window of any dimension k; for k <= 6 with vertices and volumes.
      affine: label affine regions too; otherwise their labels are -1.

    Returns:
      Partition; Ctrl-C and limits end the search with the stages that are finished.

    Raises:
      NotPiecewiseAffineError, ValueError: as ``count_regions``; several windows.

    Source: MATHEMATICS.md, exact partitions.
    """
    net, limits = prepared(f, window, input_shape, None, max_regions, max_seconds)
    if window.batch_shape != ():
        raise ValueError(f"window: expected one window, received leading axes {window.batch_shape}")
    with interruptible() as halt, watching(1, progress) as watch:
        limits = limits._replace(halt=halt)
        if window.dimension in ENGINES:
            return refined(net, window, limits, affine, watch)
        return grown(net, window, limits, affine, watch)
