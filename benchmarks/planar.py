"""Exact partitions of 2-d windows against forward passes of the same network.

    python benchmarks/planar.py [--repeat 7] [--json FILE] [--skip-large]

Floor: one jitted float64 forward pass over as many random points as the partition has regions, on
the same device: what one must compute to evaluate the function once per region. Counts are always
certified (rigorous error bounds, ties in rationals), so there is no faster uncertified mode to
compare with. Engine and floor are measured in turn in one run and the ratio of each pair is taken:
the median holds on noisy machines, absolute times are for orientation; as many pairs are taken as
fit into three seconds, at least --repeat. Networks are traced once;
tracing and the first call (compilation) are timed apart.

Tables: recipe nets (counting, and cells with patterns and affine maps, the maps read block by
block, so that those of 2-256-256-256, 1.6 GB, are never all in memory); BatchNorm at
initialisation, where all n hyperplanes of layer 1 meet in the batch centroid; 4,096 windows in one
call against one call per window.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import numpy as np

import jaxregions as jr
from jaxregions import datasets, zoo

RECIPES = (
    ((2, 32, 32), 0, 1780),
    ((2, 64, 64, 64), 1, 16623),
    ((2, 128, 128, 128), 2, 62770),
    ((2, 256, 256, 256), 3, 261938),
)
BLOCK = 1 << 14  # cells whose maps are read together
LEAST = 3.0  # seconds that pairs are measured for


def recipe(sizes: tuple[int, ...], seed: int) -> Callable[[Any], Any]:
    """He weights, biases of deviation 0.1, ReLU after each layer."""
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        weight = rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in)
        layers.append((weight, rng.normal(size=n_out) * 0.1))

    def f(x):
        for weight, bias in layers:
            x = jax.nn.relu(weight @ x + bias)
        return x

    return f


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward(f: Callable[[Any], Any], points: np.ndarray) -> Callable[[], Any]:
    """One warm float64 forward pass over the points, on the device already."""
    with jax.enable_x64(True):
        at, passed = jax.device_put(points), jax.jit(jax.vmap(f))
        passed(at).block_until_ready()

    def run():
        with jax.enable_x64(True):
            passed(at).block_until_ready()

    return run


def in_turn(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Seconds of every run, measured in turn: ``repeat`` rounds, more of what is short."""
    rounds, start = [], time.perf_counter()
    while len(rounds) < repeat or time.perf_counter() - start < LEAST:
        rounds.append({name: seconds(run) for name, run in runs.items()})
    return {name: [r[name] for r in rounds] for name in runs}


def ratios(times: dict[str, list[float]], name: str, floor: str) -> dict[str, float]:
    found = sorted(a / b for a, b in zip(times[name], times[floor], strict=True))
    return {
        f"{name}_s": statistics.median(times[name]),
        f"{name}_ratio": statistics.median(found),
        f"{name}_low": found[0],
        f"{name}_high": found[-1],
    }


def peak_gb() -> float:
    """The process's largest resident memory so far, 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def recipe_row(sizes, seed, expected, repeat) -> dict[str, Any]:
    f, window = recipe(sizes, seed), jr.Window(np.zeros(sizes[0]), 1.0)
    start = time.perf_counter()
    net = jr.trace(f, np.zeros(sizes[0]))
    traced = time.perf_counter() - start
    first = seconds(lambda: jr.count_regions(net, window))
    counts = jr.count_regions(net, window)
    assert int(counts.activation_regions) == expected, counts
    assert counts.certified, counts
    after_count = peak_gb()
    cells_and_maps(net, window)
    after_cells = peak_gb()  # before the floor needs memory
    points = np.random.default_rng(0).uniform(-1, 1, (expected, sizes[0]))
    runs = {"floor": forward(f, points), "count": lambda: jr.count_regions(net, window)}
    times = in_turn(runs, repeat)
    runs = {"floor": runs["floor"], "cells": lambda: cells_and_maps(net, window)}
    cells = in_turn(runs, repeat)
    return {
        "net": "-".join(map(str, sizes)),
        "regions": expected,
        "floor_s": statistics.median(times["floor"]),
        **ratios(times, "count", "floor"),
        **ratios(cells, "cells", "floor"),
        "exact_share": counts.settled_exactly / counts.decisions,
        "trace_s": traced,
        "first_call_s": first,
        "count_peak_gb": after_count,
        "cells_peak_gb": after_cells,
    }


def cells_and_maps(net: jr.CPAFunction, window: jr.Window) -> None:
    part = jr.partition(net, window, affine=False)
    for start in range(0, len(part.volume), BLOCK):
        part.maps(slice(start, start + BLOCK))


def centroid_row(units: int, inputs: int, repeat: int) -> dict[str, Any]:
    """BatchNorm at initialisation: 2n regions around the centroid after layer 1."""
    rng = np.random.default_rng(units)
    batch = rng.normal(size=(128, inputs))
    model = zoo.MLP(widths=(units,))
    f = jr.condition(model, model.init(jax.random.key(0), batch), batch, train=False)
    p, net = jr.centroid(batch), jr.trace(f, batch[0])
    basis = None if inputs == 2 else np.linalg.qr(rng.normal(size=(inputs, 2)))[0]
    window = jr.Window(p, 0.5) if basis is None else jr.Window(p, 0.5, basis=basis, anchor=p)
    counts = jr.count_regions(net, window)
    assert int(counts.by_stage[0]) == 2 * units, counts
    assert counts.certified, counts
    times = [seconds(lambda: jr.count_regions(net, window)) for _ in range(repeat)]
    return {
        "units": units,
        "inputs": inputs,
        "regions": int(counts.by_stage[0]),
        "count_s": statistics.median(times),
        "exact_share": counts.settled_exactly / counts.decisions,
    }


def batch_row(windows: int, alone: int, repeat: int) -> dict[str, Any]:
    """Many windows of radius 0.1 on random slices through digits, BatchNorm MLP 64-128-128-10."""
    digits, rng = datasets.load("digits"), np.random.default_rng(0)
    batch = digits.x_train[:128]
    model = zoo.MLP(widths=(128, 128))
    f = jr.condition(model, model.init(jax.random.key(0), batch), batch, train=False)
    net = jr.trace(f, batch[0])
    data = np.concatenate([digits.x_train, digits.x_test])
    centers = data[rng.integers(len(data), size=windows)]
    basis = np.linalg.qr(rng.normal(size=(windows, data.shape[1], 2)))[0]
    batched = jr.Window(centers, 0.1, basis=basis)
    singles = [batched[i] for i in range(alone)]
    counts = jr.count_regions(net, batched)
    each = [int(jr.count_regions(net, w).activation_regions) for w in singles]
    assert each == counts.activation_regions[:alone].tolist()
    regions = int(counts.activation_regions.sum())
    points = rng.uniform(0, 1, (regions, data.shape[1]))
    runs = {
        "floor": forward(f, points),
        "batch": lambda: jr.count_regions(net, batched),
        "alone": lambda: [jr.count_regions(net, w) for w in singles],
    }
    times = in_turn(runs, repeat)
    gain = sorted(
        a / alone * windows / b for a, b in zip(times["alone"], times["batch"], strict=True)
    )
    return {
        "windows": windows,
        "regions": regions,
        "floor_s": statistics.median(times["floor"]),
        **ratios(times, "batch", "floor"),
        "alone_ms": 1000 * statistics.median(times["alone"]) / alone,
        "throughput_gain": statistics.median(gain),
        "certified": bool(counts.certified.all()),
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    widths = {c: max(len(c), 9) for c in rows[0]}
    print("  ".join(f"{c:>{w}}" for c, w in widths.items()))
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print(
            "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths.values(), strict=True)), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--windows", type=int, default=4096)
    parser.add_argument(
        "--alone", type=int, default=128, help="windows that are also counted alone"
    )
    parser.add_argument("--skip-large", action="store_true", help="without 2-256-256-256")
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
    repeat = options.repeat
    chosen = RECIPES[:-1] if options.skip_large else RECIPES
    nets = [recipe_row(*case, repeat) for case in chosen]
    show("Recipe nets on [-1, 1]^2, ratios to the floor", nets)
    central = [centroid_row(n, d, repeat) for n, d in ((30, 2), (512, 2), (512, 64))]
    show("BatchNorm at initialisation, centroid inside", central)
    many = [batch_row(options.windows, min(options.alone, options.windows), repeat)]
    show("Many windows, MLP 64-128-128-10 with BatchNorm", many)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**about, "nets": nets, "centroid": central, "batch": many}, file, indent=1)


if __name__ == "__main__":
    main()
