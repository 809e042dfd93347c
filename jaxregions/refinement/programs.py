"""The three compiled steps of a round of blocks: draw, measure the first layer, summarise."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxregions._records import build
from jaxregions.hyperplanes import Hyperplanes
from jaxregions.refinement import samplers
from jaxregions.refinement.compiling import compiler_options
from jaxregions.refinement.first_layer import first_hyperplanes
from jaxregions.refinement.planes import Sample, measure_hits, measure_planes, share_plane
from jaxregions.refinement.samplers import Call, Source
from jaxregions.refinement.statistics import Moments, moments
from jaxregions.tracing import trace
from jaxregions.windows import Window

__all__ = [
    "Counts",
    "Given",
    "Job",
    "Plan",
    "contributions",
    "counted",
    "draws_of",
    "moved",
    "needed",
    "once",
    "placed",
    "quantities",
    "summary",
    "valid",
]


class Plan(NamedTuple):
    """What is compiled for; static.

    shape: of one input. block: samples a block. rows: None, or (size, of how many) of a mini-batch.
    points: how many there are to draw from, 0: none. regions: "exact", "bracket" or "none".
    generic: coincidences need not be looked for. keep: the leaves of the variables that are asked
    for, the others are not drawn; None: all of them, as the tree they are.
    """

    own: Source
    call: Call
    shape: tuple[int, ...]
    block: int
    rows: tuple[int, int] | None
    points: int
    regions: str
    generic: bool
    keep: tuple[bool, ...] | None
    mesh: Mesh


class Given(NamedTuple):
    """Arrays that all samples share: the batch or data (N, ...), its centroid, the points."""

    data: Any
    centroid: Any
    points: Any


class Counts(NamedTuple):
    """Of one twin, per sample and window: hits (..., W, S), bounds of the regions (..., W)."""

    hits: Any
    lower: Any
    upper: Any


@lru_cache(maxsize=32)
def drawing(
    own: Source,
    block: int,
    rows: tuple[int, int] | None,
    points: int,
    keep: tuple[bool, ...] | None,
    mesh: Mesh,
) -> Callable[..., Any]:
    """(key, starts) -> Draw: ``block`` samples from each start on, one start a row of the mesh.

    Compiled once for all rows, as the others: what a row computes does not depend on how many
    there are. With ``keep`` the variables are a list of these leaves.
    """
    row = PartitionSpec(mesh.axis_names[0])

    def sample(key, i):
        found = samplers.draw(key, i, own, rows, points)
        if keep is None:
            return found
        return found._replace(variables=list(compress(jax.tree.leaves(found.variables), keep)))

    def one(key, start):
        index = start[0] + jnp.arange(block, dtype=jnp.uint32)
        return jax.vmap(lambda i: sample(key, i))(index)

    return jax.jit(_spread(mesh, one, (PartitionSpec(), row), row))


@lru_cache(maxsize=32)
def placing(plan: Plan) -> Callable[..., Any]:
    """(draws, given) -> both twins' first hyperplanes, and which samples have finite ones."""
    row = PartitionSpec(plan.mesh.axis_names[0])

    def one(draw, given):
        batch, centroid = given.data, given.centroid
        if plan.rows is not None:
            batch = batch[draw.rows]
            centroid = batch.mean(axis=0)
        variables = draw.variables
        if plan.keep is not None:
            variables = _filled(plan.own, plan.keep, variables)
        pair = _planes(plan.own, plan.call, plan.shape, variables, batch, centroid)
        finite = [jnp.isfinite(p.normal).all() & ~jnp.isnan(p.offset).any() for p in pair]
        return tuple(pair), finite[0] & finite[1]

    def block(draws, given):
        return jax.vmap(lambda d: one(d, given))(draws)

    return jax.jit(_spread(plan.mesh, block, (row, PartitionSpec()), row))


@lru_cache(maxsize=32)
def needed(own: Source, call: Call, batch_shape: tuple[int, ...]) -> tuple[bool, ...]:
    """The leaves of the variables on which both twins' first hyperplanes depend."""
    variables = jax.eval_shape(own.draw, jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)

    def planes(leaves, batch):
        variables = jax.tree.unflatten(tree, leaves)
        return _planes(own, call, batch_shape[1:], variables, batch, batch.mean(axis=0))

    with jax.enable_x64(True):
        found = samplers.used(planes, leaves, jax.ShapeDtypeStruct(batch_shape, np.float64))
    keys = (jnp.issubdtype(v.dtype, jax.dtypes.extended) for v in leaves)  # nothing to fill in
    return tuple(map(any, zip(found, keys, strict=True)))


def _planes(own: Source, call: Call, shape: Any, variables: Any, batch: Any, centroid: Any) -> Any:
    """Both twins' first hyperplanes."""
    twins = samplers.twins(own, call, samplers.widened(variables), batch)
    return [first_hyperplanes(trace(f, np.zeros(shape)), centroid) for f in twins]


def _filled(own: Source, keep: tuple[bool, ...], kept: list[Any]) -> Any:
    """The tree of the variables, zeros where they were not drawn."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(own.draw, jax.random.key(0)))
    known = iter(kept)
    drawn = [
        next(known) if k else jnp.zeros(v.shape, v.dtype) for k, v in zip(keep, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


@lru_cache(maxsize=32)
def counting(
    regions: str, generic: bool, shared_basis: bool, coplanar: bool, mesh: Mesh
) -> Callable[..., Any]:
    """(planes, windows, shifts) -> Sample; windows over the mesh's second axis.

    shifts: None, or (samples, d) what moves the windows' centres.
    """
    row, *column = (PartitionSpec(name) for name in mesh.axis_names)
    pair, split = PartitionSpec(*mesh.axis_names), column[0] if column else PartitionSpec()
    basis = PartitionSpec() if shared_basis else split
    windows: Any = build(Window, center=split, radius=split, basis=basis, anchor=split, shift=split)

    def one(planes, shift, windows):
        own = windows if shift is None else moved(windows, shift)
        if regions == "none":
            hits, decided = measure_hits(planes, own)
            return Sample(hits, hits, hits, decided)
        options: Any = {"simple": generic, "coplanar": coplanar, "again": False}
        sample = measure_planes(planes, own, **options)
        if regions == "exact" and windows.dimension > 2:  # counted on the host, all of them
            sample = sample._replace(decided=jnp.zeros_like(sample.decided))
        return sample

    def block(planes, windows, shifts):
        axes = (0, None if shifts is None else 0)
        return jax.vmap(lambda p, s: one(p, s, windows), in_axes=axes)(planes, shifts)

    program = _spread(mesh, block, (row, windows, row), Sample(*[pair] * 4))
    return jax.jit(program, compiler_options=compiler_options(mesh.devices.flat[0].platform))


@lru_cache(maxsize=32)
def contributing(regions: str, mesh: Mesh) -> Callable[..., Any]:
    """((Counts, Counts), rechecked, log_volume) -> (samples, Q), ``quantities`` side by side."""
    row = PartitionSpec(mesh.axis_names[0])

    def block(pair, rechecked, log_volume):
        values = jax.vmap(lambda p, r: quantities(p, r, log_volume, regions))(pair, rechecked)
        flat = [v.reshape(len(rechecked), -1) for v in jax.tree.leaves(values)]
        return jnp.concatenate(flat, axis=1)

    return jax.jit(_spread(mesh, block, (row, row, PartitionSpec()), row))


def _spread(mesh: Mesh, function: Any, inputs: Any, outputs: Any) -> Any:
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def moved(windows: Window, point: Any) -> Window:
    """The windows, all moved by one vector."""
    return build(Window, **(vars(windows) | {"center": windows.center + point}))


def quantities(
    pair: tuple[Counts, Counts], rechecked: Any, log_volume: Any, regions: str
) -> dict[str, Any]:
    """What one sample contributes, float64: per twin and for their difference, per window (W, ...)
    and averaged over windows. The difference of two brackets is the widest one."""
    count = len(log_volume)  # windows beyond are there to fill a mesh
    twins = [jax.tree.map(lambda v: v[:count].astype(jnp.float64), c) for c in pair]
    bounds = {"exact": ("",), "bracket": ("_lower", "_upper"), "none": ()}[regions]
    sides = [_named(c, log_volume, bounds) for c in twins]
    far = {"_lower": "_upper", "_upper": "_lower", "": ""}
    opposite = {f"{name}{end}": f"{name}{far[end]}" for name in _REGIONS for end in bounds}
    sides.append({name: sides[0][name] - sides[1][opposite.get(name, name)] for name in sides[0]})
    found = dict(zip(("batch_norm", "no_batch_norm", "difference"), sides, strict=True))
    pooled = jax.tree.map(lambda v: v.mean(axis=0), found)
    return {"windows": found, "pooled": pooled, "rechecked": rechecked.astype(jnp.float64)}


_REGIONS = ("regions", "log_density")


def _named(counts: Counts, log_volume: Any, bounds: tuple[str, ...]) -> dict[str, Any]:
    found = {"hits": counts.hits}
    for end in bounds:
        value = counts.upper if end == "_upper" else counts.lower
        found |= {f"regions{end}": value, f"log_density{end}": jnp.log(value) - log_volume}
    return found


# One call ----------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A call's arrays. windows: flat (W,); filled: repeated at the end to fill the mesh. stages:
    of the hits."""

    plan: Plan
    key: Any
    given: Given
    windows: Window
    filled: Window
    log_volume: np.ndarray
    num_samples: int
    stages: int


def once(function: Any, *arguments: Any) -> Any:
    """function(*arguments), from its cache where the arguments can be looked up."""
    try:
        hash(arguments)
    except TypeError:
        return function.__wrapped__(*arguments)
    return function(*arguments)


def draws_of(job: Job, numbers: np.ndarray) -> Any:
    """The samples of these blocks, in the caller's precision."""
    plan = job.plan
    draw = drawing(plan.own, plan.block, plan.rows, plan.points, plan.keep, plan.mesh)
    return draw(job.key, (numbers * plan.block).astype(np.uint32))


def placed(job: Job, draws: Any) -> tuple[Any, Any]:
    """Both twins' first hyperplanes of these samples, and which samples have finite ones."""
    with jax.enable_x64(True):
        return once(placing, job.plan)(draws, job.given)


def counted(job: Job, planes: Hyperplanes, draws: Any) -> Sample:
    """What one twin's hyperplanes of these samples do to all windows."""
    plan, basis = job.plan, job.filled.basis
    shared = basis is not None and basis.ndim == 2
    count = counting(plan.regions, plan.generic, shared, share_plane(job.filled), plan.mesh)
    with jax.enable_x64(True):
        shifts = None if draws.point is None else job.given.points[np.asarray(draws.point)]
        return count(planes, job.filled, shifts)


def valid(job: Job, numbers: np.ndarray) -> np.ndarray:
    """Which samples of these blocks were asked for: bool (rows * block,)."""
    index = numbers[:, None] * job.plan.block + np.arange(job.plan.block)
    return (index < job.num_samples).ravel()


def contributions(job: Job, pair: Any, rechecked: Any) -> Any:
    """What these samples contribute, (samples, Q)."""
    with jax.enable_x64(True):
        return contributing(job.plan.regions, job.plan.mesh)(pair, rechecked, job.log_volume)


def summary(job: Job, numbers: np.ndarray, values: Any) -> Moments:
    """The moments of these blocks, with one row a block, from their contributions."""
    values = np.asarray(values).reshape(len(numbers), job.plan.block, -1)
    asked = valid(job, numbers).reshape(len(numbers), -1)
    parts = [moments(*one) for one in zip(values, asked, strict=True)]
    return Moments(*map(np.stack, zip(*parts, strict=True)))
