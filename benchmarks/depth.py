"""Stage-wise hits of a ResNet-18 with BatchNorm and max-pooling on 32 x 32 x 3 images.

    python benchmarks/depth.py [--width 64] [--pool-stride 2] [--full 2 11 20] [--json FILE]

The network has random weights and is conditioned on 32 real images: patches of the two photographs
that scikit-learn bundles, averaged down to 32 x 32. For every stage a centre is found where 8 of
its pulled-back hyperplanes meet (Newton steps from the first image), so that small windows inside
the parent region do have hits. Then the radius is bisected until 1 to 1000 units hit: on a
2-dimensional slice for every stage. On the full window (stages named by --full) the radius is half
the limit of the parent region. Either way ``stage_hits`` must agree with the counts that follow
from ``critical_scales``.

Check: the pulled-back normals of 1000 random units of all stages, and their reaches over the full
window, against rows and columns of the Jacobian from vjp and jvp.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

import jaxregions as jr
from jaxregions import zoo
from jaxregions.depth import critical_scales

MOST_HITS = 1000
SAME = 1e-6  # relative difference of scales that are taken for equal
TOGETHER = 8  # units whose hyperplanes meet in a stage's centre


def images(count: int, seed: int = 0) -> np.ndarray:
    """(count, 32, 32, 3): 128 x 128 patches averaged in blocks of 4, standardised per channel."""
    rng, photos = np.random.default_rng(seed), load_sample_images().images
    found = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        i, j = (rng.integers(n - 128) for n in photo.shape[:2])
        patch = photo[i : i + 128, j : j + 128].reshape(32, 4, 32, 4, 3)
        found.append(patch.mean(axis=(1, 3)))
    batch = np.stack(found)
    return (batch - batch.mean(axis=(0, 1, 2))) / batch.std(axis=(0, 1, 2))


def peak_gib() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * (1 if sys.platform == "darwin" else 1024) / 2**30


def timed(run):
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - start


def own_units(scales: tuple[np.ndarray, ...], stage: int) -> np.ndarray:
    """A stage's units from near to far, without those whose hyperplane another unit has too.

    A pooling comparison of relu(a) with relu(b) = 0 vanishes where a does, and overlapping windows
    compare the same winners: equal scales give them away.
    """
    found = scales[stage]
    units, first, copies = np.unique(found.round(15), return_index=True, return_counts=True)
    units = first[(copies == 1) & np.isfinite(units)]
    earlier = np.sort(np.concatenate([[np.inf], *scales[:stage]]))
    place = np.searchsorted(earlier, found[units] * (1 - SAME))
    return units[earlier[place] > found[units] * (1 + SAME)]


def centre_on(net, x: np.ndarray, stage: int, units: np.ndarray) -> np.ndarray:
    """A point near x where the pulled-back hyperplanes of these units meet, if Newton finds it."""
    rows = np.flatnonzero(np.isin(net.stages[stage].unit, units))
    for _ in range(50):
        planes = jr.pull_back(net, x, stage=stage, rows=rows)
        step = np.linalg.lstsq(planes.normal, planes.offset[:, 0])[0].reshape(x.shape)
        x = x + step
        if np.abs(step).max() <= 8 * np.finfo(float).eps * np.abs(x).max():
            break
    return x


def centre_with_hits(net, x: np.ndarray, stage: int, scales, basis: np.ndarray) -> np.ndarray:
    """The first of a few such points whose small slices have hits inside the parent region."""
    units = own_units(scales, stage)
    for first in range(0, 10 * TOGETHER, TOGETHER):
        found = centre_on(net, x, stage, units[first : first + TOGETHER])
        near = critical_scales(net, jr.Window(found.ravel(), 1.0, basis))
        if near.scales[stage].min() < SAME * near.limit[stage]:
            break
    return found


def bisected(net, window, stage: int, limit: float) -> tuple[float, int, int]:
    """The radius, its hits and the calls it took to come to 1 to ``MOST_HITS`` hits."""
    low, high, radius = 0.0, min(limit, 1e6), 0.99 * min(limit, 1.0)
    for calls in range(1, 80 if limit > 0 else 0):
        scaled = jr.Window(window.center, radius, window.basis)
        found = jr.stage_hits(net, scaled)
        hits = int(found.hits[stage])
        if 1 <= hits <= MOST_HITS:
            return radius, hits, calls
        low, high = (low, radius) if hits > MOST_HITS or hits < 0 else (radius, high)
        radius = (low + high) / 2
    raise RuntimeError(f"stage {stage}: no hits inside the parent region, limit {limit}")


def one_window(net, window, stage: int, *, bisect: bool) -> dict:
    scales, seconds = timed(lambda: critical_scales(net, window))
    limit = float(scales.limit[stage])
    counted = np.sort(scales.scales[stage])
    row = {
        "stage": stage,
        "dimension": window.dimension,
        "units": net.stages[stage].units,
        "seconds": seconds,
        "limit": limit,
        "hits_at_limit": int((counted < limit).sum()),
    }
    if bisect:
        radius, hits, calls = bisected(net, window, stage, limit)
    else:
        radius = min(limit, float(counted[min(MOST_HITS, len(counted) - 1)])) / 2
        found, row["stage_hits_seconds"] = timed(
            lambda: jr.stage_hits(net, jr.Window(window.center, radius, window.basis))
        )
        hits, calls = int(found.hits[stage]), 1
    counts = int((counted < radius).sum())
    return {**row, "radius": radius, "hits": hits, "calls": calls, "agree": counts == hits}


@partial(jax.jit, static_argnums=0)
def some_columns(net, x, rows, axes):
    """(axes, rows) of the Jacobian by jvp, the rows counted through all stages."""

    def values(flat):
        return jnp.concatenate(net.switching_values(flat.reshape(net.input_shape)))[rows]

    return jax.vmap(lambda v: jax.jvp(values, (x,), (v,))[1])(jax.nn.one_hot(axes, x.size))


def check_normals(net, x: np.ndarray, scales, count: int) -> dict:
    """Largest relative differences over random units: normals (jvp, vjp) and reaches (vjp)."""
    rng, d = np.random.default_rng(2), x.size
    per_stage = -(-count // len(net.stages))
    chosen, normals, reach_error, seconds = [], [], 0.0, 0.0
    offset = 0
    for s, stage in enumerate(net.stages):
        rows = rng.choice(stage.size, min(per_stage, stage.size), replace=False)
        planes, took = timed(lambda s=s, rows=rows: jr.pull_back(net, x, stage=s, rows=rows))
        seconds += took
        chosen.append(offset + rows)
        normals.append(planes.normal)
        reach = np.abs(planes.normal).sum(axis=1)
        known = reach > 0
        expected = np.abs(planes.offset[known, 0]) / reach[known]
        found = scales.scales[s][stage.unit[rows[known]]]
        reach_error = max(reach_error, np.max(abs(found / expected - 1), initial=0))
        offset += stage.size
    rows, normals = np.concatenate(chosen), np.concatenate(normals)
    with jax.enable_x64(True):
        steps = np.arange(d).reshape(-1, 16)
        columns = np.concatenate([some_columns(net, x.ravel(), rows, a) for a in steps])
    largest = np.abs(normals).max(axis=1)
    errors = np.abs(columns.T - normals).max(axis=1)[largest > 0] / largest[largest > 0]
    return {
        "units": len(rows),
        "vjp_seconds": seconds,
        "normals_relative": float(errors.max()),
        "reaches_relative": float(reach_error),
    }


def run(options) -> dict:
    batch = images(options.batch)
    model = zoo.ResNet18(width=options.width, pool_stride=options.pool_stride)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.float32(batch[:2]))
    about = {"start_gib": peak_gib()}
    f, about["condition_seconds"] = timed(lambda: jr.condition(model, variables, batch))
    about["condition_gib"] = peak_gib()
    net, about["trace_seconds"] = timed(lambda: jr.trace(f, batch[0]))
    about |= {
        "trace_gib": peak_gib(),
        "switching_values": sum(s.size for s in net.stages),
        "stages": len(net.stages),
    }
    print(json.dumps(about), flush=True)
    rng, d = np.random.default_rng(1), batch[0].size
    basis = np.linalg.qr(rng.normal(size=(d, 2)))[0]
    x = batch[0]
    slice_ = jr.Window(x.ravel(), 1.0, basis)
    near, about["first_call_seconds"] = timed(lambda: critical_scales(net, slice_))
    about["slice_seconds"] = timed(lambda: critical_scales(net, slice_))[1]
    centres, rows = {}, []
    for stage in range(len(net.stages)):
        centres[stage] = centre_with_hits(net, x, stage, near.scales, basis)
        window = jr.Window(centres[stage].ravel(), 1.0, basis)
        rows.append(one_window(net, window, stage, bisect=True))
        print(json.dumps(rows[-1]), flush=True)
    about["slices_gib"] = peak_gib()
    for stage in options.full:
        window = jr.Window(centres[stage].ravel(), 1.0)
        rows.append(one_window(net, window, stage, bisect=False))
        print(json.dumps(rows[-1]), flush=True)
    about["full_gib"] = peak_gib()
    full, _ = timed(lambda: critical_scales(net, jr.Window(x.ravel(), 1.0)))
    about["check"] = check_normals(net, x, full, options.check)
    print(json.dumps(about["check"]), flush=True)
    return {**about, "windows": rows, "peak_gib": peak_gib()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pool-stride", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--full", type=int, nargs="*", default=[2, 11, 20])
    parser.add_argument("--check", type=int, default=1000)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    device = jax.devices()[0]
    about = {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "jaxregions": jr.__version__,
        "python": sys.version.split()[0],
        **vars(options),
    }
    print(json.dumps(about), flush=True)
    result = {**about, **run(options)}
    print(f"peak memory {result['peak_gib']:.2f} GiB")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
