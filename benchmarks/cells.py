"""Exact counts in windows of any dimension against a plain depth-first enumeration.

    python benchmarks/cells.py [--repeat 3] [--cases N] [--skip-estimates]

The enumeration goes down the sign tree of every layer unit by unit: it prunes by the box, follows
the witness on the side it lies on, reuses the points it found in a cell, leaves out units that do
not cross it, and solves one warm linear program (HiGHS, dual simplex) for what is left. It takes
HiGHS's word for every decision; the engine's counts are certified. Both are measured in turn in one
run; the ratio of cells a second is the figure, times are for orientation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import numpy as np

import jaxregions as jr
from jaxregions.engines.cells import count_cells
from jaxregions.engines.estimates import estimate_cells
from jaxregions.engines.frontier import Limits
from jaxregions.engines.programs import MarginProgram
from jaxregions.verification import verify

TOLERANCE = 1e-9  # margins that the enumeration takes for zero

CASES = (  # sizes, seed, radius, regions (None: not known), also enumerated
    ((3, 16, 16), 3, 1.0, 4896, True),
    ((4, 16, 16), 4, 0.5, 17007, True),
    ((16, 24, 24), 8, 0.009, None, True),
    ((64, 64, 64), 7, 0.002, 164, True),
)
ESTIMATED = (((6, 24, 24), 5, 0.3), ((10, 32, 32), 6, 0.1), ((64, 64, 64), 7, 0.02))


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


def estimate_row(sizes, seed, radius) -> dict[str, Any]:
    net = jr.trace(network(recipe(sizes, seed)), np.zeros(sizes[0]))
    start = time.perf_counter()
    found = estimate_cells(net, jr.Window(np.zeros(sizes[0]), radius), descents=64, max_seconds=60)
    seconds = time.perf_counter() - start
    shown = found._asdict() if found else dict.fromkeys(("mean", "low", "high", "descents"), "-")
    return {"net": "-".join(map(str, sizes)), "radius": radius, **shown, "seconds": seconds}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    widths = {c: max(len(c), 10) for c in rows[0]}
    print("  ".join(f"{c:>{w}}" for c, w in widths.items()))
    for one in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in one.values())
        print("  ".join(f"{c:>{w}}" for c, w in zip(cells, widths.values(), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--skip-estimates", action="store_true")
    options = parser.parse_args()
    show("Certified counts", [row(*case, options.repeat) for case in CASES[: options.cases]])
    if not options.skip_estimates:
        show("Estimates with intervals of 95%", [estimate_row(*case) for case in ESTIMATED])


if __name__ == "__main__":
    main()
