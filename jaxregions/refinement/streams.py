"""Where the moments of a block of samples come from: one layer on devices, networks on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxregions.batchnorm import centroid
from jaxregions.refinement import layers, network, samplers
from jaxregions.refinement.blocks import Layout
from jaxregions.refinement.programs import Counts, Given, Job, Plan, needed, once, quantities
from jaxregions.refinement.samplers import Call, Source
from jaxregions.refinement.statistics import Moments
from jaxregions.tracing import trace
from jaxregions.windows import Window

__all__ = ["Request", "Stream", "open_stream"]

BYTES = 1 << 29  # working set of one block
MOST = {True: 256, False: 4096}  # samples a block, on a CPU (what its cache holds) or not
FEW = 8  # networks a block: each takes a while


class Request(NamedTuple):
    """The arguments of ``expected_refinement``, checked; data and points float64."""

    key: Any
    model: Any
    sampler: Callable[[Any], Any] | None
    data: Any
    batch_size: int | None
    points: Any
    windows: Window
    num_samples: int
    block_size: int | None
    first: bool
    regions: str
    generic: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Stream(NamedTuple):
    """count blocks of ``block`` samples each; launch and collect as ``blocks`` wants them.

    shapes: of what one sample contributes, see ``quantities``. exact: see ``RefinementEstimate``.
    """

    count: int
    block: int
    launch: Callable[[Any], Any]
    collect: Callable[[Any], Moments]
    shapes: Any
    exact: bool


def open_stream(request: Request, where: Layout) -> Stream:
    """The stream of a request.

    Raises:
      ValueError: a model without a nonlinearity, windows of a dimension that cannot be counted.
    """
    call = Call(request.args, tuple(sorted(request.kwargs.items())))
    shape = request.data.shape[1:]
    own = once(samplers.source, request.model, request.sampler, call, shape)
    size = request.batch_size or len(request.data)
    stages, planes = once(_survey, own, call, (size, *shape))
    k = request.windows.dimension
    whole = stages > 1 and not request.first
    if stages == 0:
        raise ValueError("model: expected a nonlinearity, received an affine model")
    if whole and k > 2:
        raise ValueError(
            f"windows: expected dimension 1 or 2 for a network of {stages} stages, received {k}; "
            "take a slice, Window(basis=), or stages='first'"
        )
    regions = request.regions
    if regions == "auto":
        regions = "exact" if k <= 2 else "bracket"
    if regions == "exact" and k > 3:
        raise ValueError(f"regions: expected 'auto' for windows of dimension {k}, received 'exact'")
    windows = jax.tree.map(lambda v: np.asarray(v, np.float64), request.windows).reshape(-1)
    count = len(windows.center)
    block = request.block_size
    if block is None:
        pairs = planes if k == 2 and regions == "exact" else 1
        work = 8 * planes * (math.prod(shape) + count * pairs)
        many = min(MOST[where.mesh.devices.flat[0].platform == "cpu"], max(1, BYTES // work))
        most = FEW if whole else many
        # A power of two, and not twice num_samples.
        block = 1 << min(most.bit_length() - 1, (request.num_samples - 1).bit_length())
    plan = Plan(
        own=own,
        call=call,
        shape=shape,
        block=block,
        rows=None if request.batch_size is None else (size, len(request.data)),
        points=0 if request.points is None else len(request.points),
        regions=regions,
        generic=request.generic,
        keep=None if whole else once(needed, own, call, (size, *shape)),
        mesh=where.mesh,
    )
    given = Given(
        request.data,
        centroid(request.data) if request.batch_size is None else np.zeros(shape),
        np.zeros((1, 1)) if request.points is None else request.points,
    )
    columns = where.mesh.devices.shape[1] if where.mesh.devices.ndim > 1 else 1
    job = Job(
        plan=plan,
        key=request.key,
        given=given,
        windows=windows,
        filled=windows[np.minimum(np.arange(-(-count // columns) * columns), count - 1)],
        log_volume=np.asarray(windows.log_volume()),
        num_samples=request.num_samples,
        stages=stages if whole else 1,
    )
    launch, collect = (
        (network.launch, network.collect) if whole else (layers.launch, layers.collect)
    )
    return Stream(
        count=-(-request.num_samples // block),
        block=block,
        launch=partial(launch, job),
        collect=partial(collect, job),
        shapes=_shapes(count, job.stages, regions),
        exact=regions == "exact",
    )


@lru_cache(maxsize=32)
def _survey(own: Source, call: Call, batch_shape: tuple[int, ...]) -> tuple[int, int]:
    """Stages of the model and switching values of its first stage; traced only, nothing is run."""
    found = []

    def look(variables, batch):
        for f in samplers.twins(own, call, samplers.widened(variables), batch):
            net = trace(f, np.zeros(batch_shape[1:]))
            found.append((len(net.stages), net.stages[0].size if net.stages else 0))
        return 0

    variables = jax.eval_shape(own.draw, jax.random.key(0))
    with jax.enable_x64(True):
        jax.eval_shape(look, variables, jax.ShapeDtypeStruct(batch_shape, np.float64))
    return max(found)


def _shapes(windows: int, stages: int, regions: str) -> Any:
    """Of ``quantities``."""
    bounds = np.ones(windows)
    counts = Counts(np.ones((windows, stages)), bounds, bounds)
    with jax.enable_x64(True):
        return jax.eval_shape(
            lambda c: quantities((c, c), np.zeros(()), np.zeros(windows), regions), counts
        )
