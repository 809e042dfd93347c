"""Exact counts in windows of any dimension against a plain depth-first enumeration.

    python benchmarks/cells.py [--repeat 3] [--cases N] [--only SECTION ...] [--plot PATH]

The enumeration goes down the sign tree of every layer unit by unit: it prunes by the box, follows
the witness on the side it lies on, reuses the points it found in a cell, leaves out units that do
not cross it, and solves one warm linear program (HiGHS, dual simplex) for what is left. It takes
HiGHS's word for every decision; the engine's counts are certified. Both are measured in turn in one
run; the ratio of cells a second is the figure, times are for orientation. Further sections, none of
them compared: counts against the radius, 784 inputs with few crossing units, 256 windows of the
digits in one call, lower bounds and estimates. ``--plot`` draws "radius" and "estimates".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax
from matplotlib import pyplot

import jaxregions as jr
from jaxregions import datasets, training, zoo
from jaxregions.engines.cells import count_cells
from jaxregions.engines.draws import regions_drawn
from jaxregions.engines.estimates import TreeEstimate, estimate_cells
from jaxregions.engines.frontier import Limits
from jaxregions.engines.programs import MarginProgram
from jaxregions.plotting import BLUE, GREEN, ORANGE
from jaxregions.verification import verify

TOLERANCE = 1e-9  # margins that the enumeration takes for zero

CASES = (  # sizes, seed, radius, regions (None: not known), also enumerated
    ((3, 16, 16), 3, 1.0, 4896, True),
    ((4, 16, 16), 4, 0.5, 17007, True),
    ((16, 24, 24), 8, 0.009, None, True),
    ((64, 64, 64), 7, 0.002, 164, True),
)
GROWING = (  # sizes, seed, radii
    ((10, 32, 32), 6, (0.001, 0.003, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04)),
    ((64, 64, 64), 7, (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006)),
    ((784, 32, 32), 9, (0.0002, 0.0005, 0.001, 0.002)),
)
ESTIMATED = (  # sizes, seed, radius: counted by a slower engine, then out of reach
    ((6, 24, 24), 5, 0.3),
    *(((10, 32, 32), 6, radius) for radius in (0.04, 0.06, 0.1)),
    *(((64, 64, 64), 7, radius) for radius in (0.01, 0.02, 0.05, 0.1)),
    ((784, 32, 32), 9, 0.002),
)
DIGITS = (("batch", (0.0005, 0.001, 0.002)), ("none", (0.001, 0.004, 0.006)))  # model, radii
SECTIONS = ("compared", "radius", "digits", "estimates")


def recipe(sizes: tuple[int, ...], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """He weights, biases of deviation 0.1."""
    rng, layers = np.random.default_rng(seed), []
    for n_in, n_out in pairwise(sizes):
        weight = rng.normal(size=(n_out, n_in)) * np.sqrt(2 / n_in)
        layers.append((weight, rng.normal(size=n_out) * 0.1))
    return layers


def network(layers: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[Any], Any]:
    def f(x):
        for weight, bias in layers:
            x = jax.nn.relu(weight @ x + bias)
        return x

    return f


# The enumeration ---------------------------------------------------------------------------------


def enumerated(layers: list[tuple[np.ndarray, np.ndarray]], radius: float, limit: float) -> int:
    """Regions in [-radius, radius]^k, in units of the radius; -1 after ``limit`` seconds."""
    k, ends = layers[0][0].shape[1], time.perf_counter() + limit
    stack = [(0, np.eye(k) * radius, np.zeros(k), np.zeros((0, k)), np.zeros(0), np.zeros(k))]
    count = 0
    while stack:
        layer, slope, value, rows, levels, witness = stack.pop()
        if layer == len(layers):
            count += 1
            continue
        if time.perf_counter() > ends:
            return -1
        weight, bias = layers[layer]
        a, b = weight @ slope, weight @ value + bias
        for signs, point in split(a, b, rows, levels, witness):
            cut = np.flatnonzero(np.abs(signs) == 1)
            size = np.linalg.norm(a[cut], axis=1)
            more = np.sign(signs[cut])[:, None] * a[cut] / size[:, None]
            stack.append(
                (
                    layer + 1,
                    a * (signs > 0)[:, None],
                    b * (signs > 0),
                    np.concatenate([rows, more]),
                    np.concatenate([levels, np.sign(signs[cut]) * b[cut] / size]),
                    point,
                )
            )
    return count


def split(a, b, rows, levels, witness) -> list[tuple[np.ndarray, np.ndarray]]:
    """Signs (2: by the box alone) and witnesses of the cells that hyperplanes make of one cell."""
    reach = np.abs(a).sum(axis=1)
    signs = np.where(b >= reach, 2, np.where(b <= -reach, -2, 0))
    open_ = np.flatnonzero(signs == 0)
    if not len(open_):
        return [(signs, witness)]
    size = np.linalg.norm(a[open_], axis=1)
    own, level = a[open_] / size[:, None], b[open_] / size
    program = MarginProgram(
        np.concatenate([rows, own, -own]), np.concatenate([levels, level, -level])
    )
    fixed, count, found = [*range(len(rows))], len(open_), []
    pool, cuts = [witness], []
    for i in range(count):  # what does not cross the cell is never branched on
        here = 1 if own[i] @ witness + level[i] > 0 else -1
        answer = program.solve([*fixed, len(rows) + i + (count if here > 0 else 0)])
        if answer is not None and answer.margin > TOLERANCE:
            cuts.append(i)
            pool.append(answer.point)
        else:
            signs[open_[i]] = 2 * here
    stack = [(0, [], signs, witness)]
    while stack:
        at, chosen, signs, point = stack.pop()
        if at == len(cuts):
            found.append((signs, point))
            continue
        i = cuts[at]
        here = 1 if own[i] @ point + level[i] > 0 else -1
        other = len(rows) + i + (count if here > 0 else 0)
        wanted = [*chosen, other]
        gaps = np.array(pool) @ program.slope[wanted].T + program.value[wanted]
        known = np.flatnonzero((gaps > TOLERANCE).all(axis=1))
        beyond = pool[known[0]] if len(known) else None
        if beyond is None:
            answer = program.solve([*fixed, *wanted])
            if answer is not None and answer.margin > TOLERANCE:
                beyond = answer.point
                pool.append(beyond)
        for side, place in ((here, point), (-here, beyond)):
            if place is None:
                continue
            new = signs.copy()
            new[open_[i]] = side * (2 if beyond is None else 1)
            row = len(rows) + i + (count if side < 0 else 0)
            stack.append((at + 1, chosen if beyond is None else [*chosen, row], new, place))
    return found


# Tables ------------------------------------------------------------------------------------------


def row(sizes, seed, radius, expected, compared, repeat: int) -> dict[str, Any]:
    layers = recipe(sizes, seed)
    net = jr.trace(network(layers), np.zeros(sizes[0]))
    window = jr.Window(np.zeros((1, sizes[0])), radius)

    def count(certificate: bool = False):
        return count_cells(net, window, limits=Limits(None, np.inf), certificate=certificate)

    found = count()
    assert found.certified.all(), found
    regions = int(found.regions[0])
    assert expected in (None, regions), found
    times: dict[str, list[float]] = {"count": [], "certificate": [], "verify": [], "plain": []}

    def measured(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        answer = run()
        times[name].append(time.perf_counter() - start)
        return answer

    for _ in range(repeat):
        measured("count", count)
        certificate = measured("certificate", lambda: count(True)).certificate
        assert measured("verify", lambda: verify(net, window, certificate)) is True  # noqa: B023
        if compared:
            plain = measured("plain", lambda: enumerated(layers, radius, 60.0))
            assert plain in (-1, regions), (plain, regions)
    best = {name: min(values) for name, values in times.items() if values}
    return {
        "net": "-".join(map(str, sizes)),
        "radius": radius,
        "regions": regions,
        **{f"{name}_s": seconds for name, seconds in best.items()},
        "cells_per_s": regions / best["count"],
        "plain_per_s": regions / best.get("plain", np.inf),
        "ratio": statistics.median(
            p / c for p, c in zip(times["plain"], times["count"], strict=False)
        )
        if compared
        else np.nan,
    }


def radius_row(sizes, seed, radius, seconds: float = 60.0) -> dict[str, Any]:
    """One window, whole or as far as the time goes."""
    net = jr.trace(network(recipe(sizes, seed)), np.zeros(sizes[0]))
    window = jr.Window(np.zeros((1, sizes[0])), radius)
    count_cells(net, window, limits=Limits(2, np.inf))  # compiles
    start = time.perf_counter()
    found = count_cells(net, window, limits=Limits(None, time.monotonic() + seconds))
    took = time.perf_counter() - start
    return {
        "net": "-".join(map(str, sizes)),
        "radius": radius,
        "hits": str(found.hits[0].tolist()),
        "at least": int(found.regions[0]),
        "complete": bool(found.certified[0] and found.status[0] == 0),
        "programs": found.programs,
        "in rationals": found.settled_exactly,
        "seconds": took,
    }


def estimate_row(sizes, seed, radius, seconds: float = 60.0) -> dict[str, Any]:
    """What is proven within a time, by the sign tree and by random points, and an estimate."""
    net = jr.trace(network(recipe(sizes, seed)), np.zeros(sizes[0]))
    window = jr.Window(np.zeros(sizes[0]), radius)
    limits = Limits(None, time.monotonic() + seconds)
    counted = int(count_cells(net, window.reshape(1), limits=limits).regions[0])
    deadline = time.monotonic() + seconds
    drawn = regions_drawn(net, window, points=1 << 30, deadline=deadline)
    start = time.perf_counter()
    found = estimate_cells(net, window, max_seconds=seconds, proven=max(counted, drawn))
    name, took = "-".join(map(str, sizes)), time.perf_counter() - start
    shown: dict[str, Any] = dict.fromkeys(TreeEstimate._fields, np.nan)
    shown |= {} if found is None else found._asdict()
    bounds = {"by the tree": counted, "by points": drawn}
    return {"net": name, "radius": radius, **bounds, **shown, "seconds": took}


KINDS = {  # of a point in the figure
    "certified count": {"marker": "o", "markersize": 4},
    "proven lower bound": {"marker": "^", "markerfacecolor": "white", "linestyle": "none"},
    "estimate, 95% interval": {"marker": "s", "markerfacecolor": "white", "linestyle": ":"},
}


def plot(counted: list[dict[str, Any]], estimated: list[dict[str, Any]], path: str) -> None:
    """Regions against the radius: certified counts, proven lower bounds, intervals."""
    figure, ax = pyplot.subplots(figsize=(6.4, 4.6), layout="constrained")
    count, bound, estimate = KINDS.values()
    names = list(dict.fromkeys(one["net"] for one in counted))
    for name, color in zip(names, (BLUE, ORANGE, GREEN), strict=False):
        whole = [one for one in counted if one["net"] == name and one["complete"]]
        radius, regions = ([one[c] for one in whole] for c in ("radius", "at least"))
        ax.plot(radius, regions, color=color, **count)
        rest = [one for one in estimated if one["net"] == name and one["radius"] > max(radius)]
        radius, proven, mean, low, high = (
            np.array([one[c] for one in rest]) for c in ("radius", "proven", "mean", "low", "high")
        )
        ax.plot(radius, proven, color=color, **bound)
        ends = np.maximum([mean - low, high - mean], 0)
        ax.errorbar(radius, mean, ends, color=color, capsize=5, linewidth=1, **estimate)
        ax.plot([], [], color=color, linewidth=3, label=f"{name}, k = {name.partition('-')[0]}")
    for label, style in KINDS.items():
        ax.plot([], [], color="black", label=label, **style)
    ax.set(xscale="log", yscale="log", xlabel="radius r", ylabel="regions in $[-r, r]^k$")
    ax.legend(frameon=False)
    ax.grid(alpha=0.25, linewidth=0.5)
    figure.savefig(path, dpi=100)


def digits_rows(max_regions: int = 10_000, seconds: float = 120.0) -> Iterator[dict[str, Any]]:
    """256 test images in 64 dimensions, the study's models after training."""
    data = datasets.load("digits", seed=0)
    x, centers = (np.asarray(a, np.float64) for a in (data.x_train, data.x_test[:256]))
    batch = x[np.random.default_rng(0).permutation(len(x))[:128]]
    for norm, radii in DIGITS:
        model = zoo.MLP(widths=(128, 128), num_outputs=10, norm=norm, bias_std=0.1)
        options = {"optimizer": optax.adam(1e-3), "batch_size": 128, "epochs": 20}
        state = training.train(model, data, key=jax.random.key(0), **options)
        net = jr.trace(jr.condition(model, state.variables, batch), np.zeros(64))
        for radius in radii:
            start = time.perf_counter()
            limits = {"max_regions": max_regions, "max_seconds": seconds}
            found = jr.count_regions(net, jr.Window(centers, radius), progress=False, **limits)
            counts = found.activation_regions
            yield {
                "norm": norm,
                "radius": radius,
                "least": int(counts.min()),
                "median": float(np.median(counts)),
                "most": int(counts.max()),
                "total": int(counts.sum()),
                "complete": float((found.certified & (found.status == 0)).mean()),
                "in rationals": found.settled_exactly,
                "seconds": time.perf_counter() - start,
            }


def show(title: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prints every row as soon as it is measured; returns them."""
    print(f"\n{title}", flush=True)
    shown = []
    for one in rows:
        if not shown:
            print("  ".join(f"{c:>{max(len(c), 10)}}" for c in one))
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in one.values())
        print(
            "  ".join(f"{v:>{max(len(c), 10)}}" for c, v in zip(one, cells, strict=True)),
            flush=True,
        )
        shown.append(one)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--plot", help="where to save the figure of counts against the radius")
    options = parser.parse_args()
    if "compared" in options.only:
        show("Certified counts", (row(*case, options.repeat) for case in CASES[: options.cases]))
    counted, estimated = [], []
    if "radius" in options.only:
        for sizes, seed, radii in GROWING:
            counted += show("Against the radius", (radius_row(sizes, seed, r) for r in radii))
    if "digits" in options.only:
        show("Windows of the digits, one call each", digits_rows())
    if "estimates" in options.only:
        title = "Proven lower bounds; statistical estimates with 95% intervals"
        estimated = show(title, (estimate_row(*case) for case in ESTIMATED))
    if options.plot and counted:
        plot(counted, estimated, options.plot)


if __name__ == "__main__":
    main()
