"""Window hits, counts out: ``count_hits`` against the floor of any such count.

    python benchmarks/hits.py [--windows 100000] [--units 4096] [--repeat 11] [--json FILE]

Floor: the same products w . c in float32 at "highest" precision, in chunks, and a row sum of them:
what one must compute to look at every (window, unit) pair at all. The ratio includes the rounding
bounds, the float64 and rational re-decisions and the transfers. Both are measured in turn in one
run, the floor in the chunk size that is fastest for it; the ratio is the median over the turns.
Absolute times are for orientation.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxregions
from jaxregions import Hyperplanes, Window, count_hits


@partial(jax.jit, static_argnames="rows")
def floor(kernel, centers, *, rows):
    """Row sums of centers @ kernel, ``rows`` windows at a time."""

    def step(c):
        return jnp.matmul(c, kernel, precision=jax.lax.Precision.HIGHEST).sum(1)

    return jax.lax.map(step, centers.reshape(-1, rows, centers.shape[1]))


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(d: int, units: int, windows: int, repeat: int) -> dict:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((units, d), np.float32)
    centers = rng.standard_normal((windows, d), np.float32)
    planes = Hyperplanes(normal, centers[:128].mean(0), np.zeros((units, 1)))
    batch = Window(centers, 0.05)
    kernel, points = jnp.asarray(normal.T), jnp.asarray(centers)
    # The best chunk for the floor, so that the ratio is not flattered by a slow floor.
    sizes = [r for r in (100, 200, 500, 1000, 2000, 5000) if windows % r == 0]
    tries = {rows: partial(floor, kernel, points, rows=rows) for rows in sizes}
    for run in tries.values():
        seconds(run)
    best = [min((seconds(run), rows) for rows, run in tries.items()) for _ in range(3)]
    rows = min(best)[1]
    counted = count_hits(planes, batch)
    pairs = [
        (
            seconds(partial(count_hits, planes, batch)),
            seconds(partial(floor, kernel, points, rows=rows)),
        )
        for _ in range(repeat)
    ]
    ratios = sorted(a / b for a, b in pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "d": d,
        "units": units,
        "windows": windows,
        "seconds": statistics.median(a for a, _ in pairs),
        "floor_seconds": statistics.median(b for _, b in pairs),
        "floor_rows": rows,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "ratio_of_fastest": min(a for a, _ in pairs) / min(b for _, b in pairs),
        "mean_hits": float(counted.hits.mean()),
        "rechecked_share": float(counted.rechecked.sum() / (units * windows)),
        "peak_gib": peak * (1 if sys.platform == "darwin" else 1024) / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 784])
    parser.add_argument("--repeat", type=int, default=11)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    device = jax.devices()[0]
    about = {
        "device": f"{device.platform}: {device.device_kind}",
        "jax": jax.__version__,
        "numpy": np.__version__,
        "jaxregions": jaxregions.__version__,
        "python": sys.version.split()[0],
    }
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    columns = (
        "d units windows seconds floor_seconds floor_rows ratio ratio_low ratio_high "
        "ratio_of_fastest rechecked_share peak_gib"
    )
    print(" ".join(f"{c:>16}" for c in columns.split()))
    rows = []
    for d in options.dimensions:
        rows.append(measure(d, options.units, options.windows, options.repeat))
        print(" ".join(f"{rows[-1][c]:>16.4g}" for c in columns.split()), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
