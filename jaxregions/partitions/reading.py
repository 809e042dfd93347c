"""Read off a partition: level sets, plain arrays, the dual graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxregions.engines.frontier import Status
from jaxregions.partitions.records import Partition

__all__ = ["level_set", "map_blocks", "to_dict", "to_networkx"]

BLOCK = 1 << 14  # cells whose maps are looked at together


def level_set(
    part: Partition, output: int = 0, *, minus: int | None = None, level: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where {f_output - f_minus = level} runs through the cells; float64.

    With two logits and level 0 this is the decision boundary between two classes. Inside one cell
    of a 2-d window the set is a straight piece.

    Args:
      output, minus: indices into the flattened outputs; minus=None: f_output alone.

    Returns:
      pieces: (M, 2, 2) end points in slice coordinates; k = 1: (M, 1, 1) points.
      cell: (M,) the cell of each piece. A cell on which the function equals the level throughout
        has none.

    Raises:
      ValueError: an output that does not exist, an incomplete partition, a window of dimension 3
        and above (take a slice; ``slope`` and ``intercept`` hold the hyperplane of every cell).

    Source: MATHEMATICS.md, exact partitions.
    """
    if part.window.dimension > 2:
        raise ValueError(
            "part: expected a window of dimension 1 or 2, received "
            f"{part.window.dimension}; take a slice: Window(basis=)"
        )
    outputs = part.outputs
    for name, value in (("output", output), ("minus", minus)):
        if value is not None and not 0 <= value < outputs:
            raise ValueError(f"{name}: expected 0 to {outputs - 1}, received {value}")
    if part.status != Status.COMPLETE:
        raise ValueError(f"expected a complete partition, received {Status(part.status).name}")
    slope, shift = _difference(part, output, minus)
    shift = shift - level
    cell = np.repeat(np.arange(len(shift)), np.diff(part.start))
    follow = np.arange(1, len(cell) + 1)
    follow[part.start[1:] - 1] = part.start[:-1]
    u = part.vertices[part.corner]
    value = np.einsum("hk,hk->h", slope[cell], u) + shift[cell]
    cross = np.flatnonzero((value >= 0) != (value[follow] >= 0))
    if u.shape[1] == 1:
        cross = cross[cross < follow[cross]]
    t = value[cross] / (value[cross] - value[follow[cross]])
    at = u[cross] + t[:, None] * (u[follow[cross]] - u[cross])
    if u.shape[1] == 1:
        return at[:, None], cell[cross]
    return at.reshape(-1, 2, 2), cell[cross[::2]]


def _difference(part: Partition, output: int, minus: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(F, k), (F,) the map of f_output - f_minus on every cell."""
    slope, shift = np.empty(part.witness.shape), np.empty(len(part.witness))
    for here, (slopes, shifts) in map_blocks(part):
        slope[here], shift[here] = slopes[:, output], shifts[:, output]
        if minus is not None:
            slope[here] -= slopes[:, minus]
            shift[here] -= shifts[:, minus]
    return slope, shift


def map_blocks(part: Partition) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray]]]:
    """The cells block by block, with their maps: not all are in memory at once."""
    for start in range(0, len(part.witness), BLOCK):
        here = slice(start, start + BLOCK)
        yield here, part.maps(here)


def to_dict(part: Partition) -> dict[str, np.ndarray]:
    """The partition as plain arrays, ready for ``np.savez(path, **to_dict(part))``.

    Stage s's pattern is "pattern_s", its table "stage_s_children" and so on.

    Source: MATHEMATICS.md, exact partitions.
    """
    skip = ("window", "patterns", "tables")
    names = [field.name for field in dataclasses.fields(part) if field.name not in skip]
    out = {name: np.asarray(getattr(part, name)) for name in names}
    for name in ("center", "radius", "basis", "anchor", "shift"):
        if getattr(part.window, name) is not None:
            out[f"window_{name}"] = np.asarray(getattr(part.window, name))
    out |= {f"pattern_{s}": pattern for s, pattern in enumerate(part.patterns)}
    for s, table in enumerate(part.tables):
        out |= {f"stage_{s}_{name}": np.asarray(v) for name, v in table._asdict().items()}
    return out


def to_networkx(part: Partition) -> Any:
    """The dual graph: a node per cell (volume, region, affine_region), an edge per facet
    (stage, unit).

    Raises:
      ImportError: networkx is not installed.

    Source: MATHEMATICS.md, exact partitions.
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs networkx: pip install networkx") from error
    graph = networkx.Graph()
    columns = zip(
        part.volume.tolist(), part.region.tolist(), part.affine_region.tolist(), strict=True
    )
    for cell, (volume, region, affine) in enumerate(columns):
        graph.add_node(cell, volume=volume, region=region, affine_region=affine)
    facets = (part.left, part.right, part.facet_stage, part.facet_unit)
    for left, right, stage, unit in zip(*(f.tolist() for f in facets), strict=True):
        graph.add_edge(left, right, stage=stage, unit=unit)
    return graph
