"""Monte Carlo of one layer's hits and regions against drawing its weights, and against NumPy.

    python benchmarks/refinement.py [--samples 16384] [--repeat 7] [--json FILE]

k = 2, 64 ReLU units, 16 windows, BatchNorm (beta = 0) and its twin without on the same draws.

Both halves of the samples at once, on two threads. Floors, in the same run and in turn: the
same normals drawn in the same jitted block, on two threads too; and a
NumPy loop over samples, vectorised over all pairs and windows of a sample (crossings once per
sample; 2n in closed form for BatchNorm), which proves nothing. Ratios are medians over the turns.

Variance reduction: equal-cost variance ratio = variance x time of the plain estimator over that of
the other, for the mean over windows; above 1 pays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from variance import (
    hits_given_weights,
    regions_given_weights,
    sobol_normals,
)

import jaxregions as jr
from jaxregions._records import build
from jaxregions.refinement.compiling import compiler_options
from jaxregions.refinement.planes import measure_exactly, measure_hits, measure_planes

UNITS, WINDOWS, BIAS = 64, 16, 0.3
RNG = np.random.default_rng(0)
BOXES = jr.Window(RNG.uniform(-1, 1, (WINDOWS, 2)), 0.4)
CENTROID = np.array([0.2, 0.3])
PAIRS = np.triu_indices(UNITS, 1)
POOL = ThreadPoolExecutor(2)


def draw(key, samples, dtype):
    """(samples, n, 2) weights and (samples, n, 1) biases, one folded key per sample."""

    def one(index):
        weight, bias = jax.random.split(jax.random.fold_in(key, index))
        weight = jax.random.normal(weight, (UNITS, 2), dtype)
        return weight, BIAS * jax.random.normal(bias, (UNITS, 1), dtype)

    return jax.vmap(one)(jnp.arange(samples))


def twins(weight, bias):
    """The hyperplanes of both twins, with a leading axis of samples."""
    of = partial(build, jr.Hyperplanes, normal=weight)
    shape = (len(weight), 2)
    return (
        of(point=jnp.broadcast_to(CENTROID, shape), offset=jnp.zeros_like(bias)),
        of(point=jnp.zeros(shape), offset=-bias),
    )


def measured(function, weight, bias):
    return tuple(jax.vmap(function)(planes) for planes in twins(weight, bias))


def numpy_sample(weight, bias):
    """Regions of both twins in all windows, one sample."""
    center, radius = BOXES.center, BOXES.radii()
    reach = abs(weight) @ radius.T
    hits = (abs(weight @ (center - CENTROID).T) < reach).sum(0)
    inside = (abs(CENTROID - center) < radius).all(1)
    batch_norm = 1 + hits + np.where(inside, hits - 1, 0)
    hits = (abs(weight @ center.T + bias[:, None]) < reach).sum(0)
    (ax, ay), (bx, by) = weight[PAIRS[0]].T, weight[PAIRS[1]].T
    a, b = bias[PAIRS[0]], bias[PAIRS[1]]
    inverse = 1 / (ax * by - ay * bx)
    x, y = (ay * b - by * a) * inverse, (bx * a - ax * b) * inverse
    crosses = abs(x - center[:, :1]) < radius[:, :1]
    crosses &= abs(y - center[:, 1:]) < radius[:, 1:]
    return batch_norm, 1 + hits + np.count_nonzero(crosses, axis=1)


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def in_turn(runs: dict, repeat: int) -> dict[str, list[float]]:
    for run in runs.values():
        seconds(run)
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeat)]
    return {name: [r[name] for r in rounds] for name in runs}


def ratio(times: dict, name: str, floor: str) -> tuple[float, float, float]:
    found = sorted(a / b for a, b in zip(times[name], times[floor], strict=True))
    return statistics.median(found), found[0], found[-1]


def on_two_cores(program, keys):
    """Both halves at once, as ``expected_refinement`` runs its blocks: XLA would use one core."""

    def run(key):
        with jax.enable_x64(True):
            return jax.block_until_ready(program(key))

    return list(POOL.map(run, keys))


def speed(samples: int, repeat: int, dtype) -> dict:
    keys, half = (jax.random.key(0), jax.random.key(1)), samples // 2
    key = keys[0]
    compiled = partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
    drawn = compiled(partial(draw, samples=half, dtype=dtype))

    def step(function):
        return compiled(lambda key: measured(function, *draw(key, half, dtype)))

    programs = {
        "draw": drawn,
        "hits": step(lambda p: measure_hits(p, BOXES)),
        "simple": step(lambda p: measure_planes(p, BOXES, simple=True)),
        "proven": step(lambda p: measure_planes(p, BOXES)),
    }
    weight, bias = (np.asarray(a, np.float64) for a in drawn(key))
    some = min(half, 256)

    def loop():
        return [numpy_sample(w, b[:, 0]) for w, b in zip(weight[:some], bias[:some], strict=True)]

    runs: dict = {name: partial(on_two_cores, run, keys) for name, run in programs.items()}
    runs["numpy"] = loop
    times = in_turn(runs, repeat)
    times["numpy"] = [t * samples / some for t in times["numpy"]]
    found = {name: programs[name](key) for name in ("simple", "proven")}
    expected = np.stack([np.stack(pair) for pair in loop()], axis=1)
    wrong = sum(
        int((np.asarray(s.lower)[:some] != e)[np.asarray(s.decided)[:some]].sum())
        for s, e in zip(found["proven"], expected, strict=True)
    )
    row = {"dtype": np.dtype(dtype).name, "numpy_us": 1e6 * min(times["numpy"]) / samples}
    for name in programs:
        row[f"{name}_us"] = 1e6 * min(times[name]) / samples
    row["hits_over_draw"], row["hits_low"], row["hits_high"] = ratio(times, "hits", "draw")
    for name in ("simple", "proven"):
        row[f"numpy_over_{name}"], row[f"{name}_low"], row[f"{name}_high"] = ratio(
            times, "numpy", name
        )
        row[f"{name}_open"] = float(1 - np.mean([s.decided for s in found[name]]))
    return row | {"disagree_with_numpy": wrong}


def exact_rate(samples: int = 512) -> dict:
    """What one pair costs that is decided again on the host."""
    weight, bias = draw(jax.random.key(1), samples, jnp.float32)
    _, planes = jax.tree.map(np.asarray, twins(weight, bias))
    windows = BOXES[np.arange(samples) % WINDOWS]
    measure_exactly(planes, windows)
    return {"exactly_us_a_pair": 1e6 * seconds(lambda: measure_exactly(planes, windows)) / samples}


def variance(samples: int, repeat: int) -> list[dict]:
    """Means over windows of one sample: variances of estimators, and seconds per sample."""
    dtype, key = jnp.float64, jax.random.key(2)
    cdf = partial(jax.scipy.stats.norm.cdf, scale=BIAS)
    density = partial(jax.scipy.stats.norm.pdf, scale=BIAS)

    def plain(key, sign=1.0):
        weight, bias = draw(key, samples, dtype)
        found = measured(lambda p: measure_planes(p, BOXES, simple=True), sign * weight, bias)
        return [(s.hits.mean(-1), s.lower.mean(-1)) for s in found]

    def no_batch_norm(key):
        weight, bias = draw(key, samples, dtype)
        planes = twins(weight, bias)[1]
        sample = jax.vmap(lambda p: measure_planes(p, BOXES, simple=True))(planes)
        return sample.hits.mean(-1), sample.lower.mean(-1)

    def hits_only(key):
        weight, bias = draw(key, samples, dtype)
        return jax.vmap(lambda p: measure_hits(p, BOXES))(twins(weight, bias)[1])[0].mean(-1)

    def conditional_hits(key):
        weight, _ = draw(key, samples, dtype)
        return jax.vmap(lambda w: hits_given_weights(w, BOXES, cdf))(weight).mean(-1)

    def conditional_regions(key):
        weight, _ = draw(key, samples, dtype)
        shift = jax.random.uniform(
            jax.random.fold_in(key, samples), (samples, WINDOWS, 2), dtype, -1, 1
        )
        run = jax.vmap(lambda w, s: regions_given_weights(w, BOXES, cdf, density, s))
        return run(weight, shift).mean(-1)

    functions = {f.__name__: jax.jit(f) for f in (plain, no_batch_norm, hits_only)}
    functions |= {f.__name__: jax.jit(f) for f in (conditional_hits, conditional_regions)}
    times = in_turn({n: partial(f, key) for n, f in functions.items()}, repeat)
    cost = {name: min(t) / samples for name, t in times.items()}
    var = lambda a: float(np.var(np.asarray(a), ddof=1))  # noqa: E731
    (bn_hits, bn_regions), (hits, regions) = functions["plain"](key)
    _, (other_hits, other_regions) = functions["plain"](jax.random.key(3))
    _, (mirrored_hits, mirrored_regions) = functions["plain"](key, -1.0)
    rows = []

    def add(what, base, other, base_cost=1.0, other_cost=1.0):
        rows.append(
            {
                "estimator": what,
                "variance_ratio": base / other,
                "time_ratio": other_cost / base_cost,
                "equal_cost_ratio": base * base_cost / (other * other_cost),
            }
        )

    add("common numbers, difference of hits", var(bn_hits - other_hits), var(bn_hits - hits))
    pair = var(bn_regions - other_regions), var(bn_regions - regions)
    add("common numbers, difference of regions", *pair)
    add(
        "bias integrated out, hits", var(hits), var(functions["conditional_hits"](key)),
        cost["hits_only"], cost["conditional_hits"],
    )  # fmt: skip
    add(
        "bias integrated out, regions", var(regions), var(functions["conditional_regions"](key)),
        cost["no_batch_norm"], cost["conditional_regions"],
    )  # fmt: skip
    # Two mirrored samples against two independent ones; the cost is the same, less a draw.
    add("antithetic weights, hits", var(hits) / 2, var((hits + mirrored_hits) / 2))
    add("antithetic weights, regions", var(regions) / 2, var((regions + mirrored_regions) / 2))
    add("antithetic weights, BatchNorm hits", 1.0, 2.0)  # -w has the same hyperplanes
    sobol(add, var(hits), var(regions), cost["no_batch_norm"])
    return rows


def sobol(add, hits_variance, regions_variance, plain_cost, size=256, sequences=32):
    """Means over one scrambled sequence, against means over as many independent samples."""
    count = jax.jit(jax.vmap(lambda p: measure_planes(p, BOXES, simple=True)))
    means, drawing = [], []
    for seed in range(sequences):
        start = time.perf_counter()
        normals = sobol_normals(seed, size, 3 * UNITS).reshape(size, UNITS, 3)
        drawing.append(time.perf_counter() - start)
        sample = count(
            twins(jnp.asarray(normals[..., :2]), BIAS * jnp.asarray(normals[..., 2:]))[1]
        )
        means.append((float(sample.hits.mean()), float(sample.lower.mean())))
    found = np.var(np.asarray(means), axis=0, ddof=1)
    cost = plain_cost + min(drawing) / size
    add("scrambled Sobol, hits", hits_variance / size, float(found[0]), plain_cost, cost)
    add("scrambled Sobol, regions", regions_variance / size, float(found[1]), plain_cost, cost)


def show(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    for row in rows:
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items())
        print("  ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=16_384)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    device = jax.devices()[0]
    about = {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "numpy": np.__version__,
        "jaxregions": jr.__version__,
        "python": sys.version.split()[0],
    }
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    with jax.enable_x64(True):
        rows = [speed(options.samples, options.repeat, t) for t in (jnp.float32, jnp.float64)]
        show("Both twins, microseconds a sample", [*rows, exact_rate()])
        reduction = variance(min(options.samples, 4096), options.repeat)
        show("Variance reduction at equal cost", reduction)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**about, "speed": rows, "variance": reduction}, file, indent=1)


if __name__ == "__main__":
    main()
