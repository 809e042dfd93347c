"""Blocks of samples spread over the devices of a mesh, and back in order.

A round is one block a row of the mesh. Each row runs the very program that a single device would
run, on its own block; the blocks' moments come back in the order of the samples. So the result
does not depend on how many rows or processes there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxregions.refinement.statistics import Moments

__all__ = ["Layout", "blocks", "layout"]

AT_ONCE = 2  # rounds under way


class Layout(NamedTuple):
    """mesh: this process's part, axes (rows,) or (rows, windows). rows: which rows of the whole
    mesh these are, for every process. total: rows of the whole mesh."""

    mesh: Mesh
    rows: tuple[tuple[int, ...], ...]
    total: int

    @property
    def mine(self) -> tuple[int, ...]:
        return self.rows[jax.process_index() if len(self.rows) > 1 else 0]


def layout(mesh: Mesh | None) -> Layout:
    """Which process computes which blocks. None: one device, of every process for itself.

    Raises:
      ValueError: not a mesh of one or two axes, a row that spans processes, processes with
        different numbers of rows.
    """
    if mesh is None:
        return Layout(Mesh(np.array(jax.local_devices()[:1]), ("samples",)), ((0,),), 1)
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh, received {type(mesh).__name__}")
    devices = mesh.devices
    if devices.ndim not in (1, 2):
        raise ValueError(
            "mesh: expected the axes (samples,) or (samples, windows), received "
            f"{mesh.axis_names} of shape {devices.shape}"
        )
    owners = [sorted({d.process_index for d in np.ravel(row)}) for row in devices]
    if any(len(owner) > 1 for owner in owners):
        raise ValueError(
            "mesh: expected the devices of one row (one entry of the first axis) in one process, "
            f"received rows of the processes {owners}"
        )
    processes = sorted({owner[0] for owner in owners})
    rows = tuple(tuple(i for i, o in enumerate(owners) if o[0] == p) for p in processes)
    if len(processes) > 1 and processes != list(range(jax.process_count())):
        raise ValueError(
            f"mesh: expected devices of all {jax.process_count()} processes or of one, received "
            f"those of {processes}"
        )
    if len({len(r) for r in rows}) > 1:
        raise ValueError(
            f"mesh: expected equally many rows of every process, received {[len(r) for r in rows]}"
        )
    if len(processes) == 1 and processes[0] != jax.process_index():
        raise ValueError(
            f"mesh: expected devices of this process ({jax.process_index()}), received those of "
            f"process {processes[0]}"
        )
    whole = Layout(mesh, rows, len(devices))
    return whole._replace(mesh=Mesh(devices[list(whole.mine)], mesh.axis_names))


def blocks(
    where: Layout, count: int, launch: Callable[[Any], Any], collect: Callable[[Any], Moments]
) -> Iterator[Moments]:
    """The moments of blocks 0 .. count - 1, in order, on every process.

    launch: numbers of this process's blocks of a round (rows,) -> work under way. collect: that ->
    their moments, leading axis (rows,). Rounds overlap: XLA runs most of what a CPU does for one on
    a single core, and what is left open is settled on the host.
    """
    rounds, mine = -(-count // where.total), np.array(where.mine)
    # Of this thread; the others start with what is set globally.
    wide = jnp.result_type(float) == np.float64
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def work(number: int) -> Moments:
        with jax.enable_x64(wide), jax.default_device(device):
            return collect(launch(number * where.total + mine))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = deque([pool.submit(work, 0)])
        try:
            wait(running)  # what two threads need at once, both of them compile
            running.extend(pool.submit(work, number) for number in range(1, min(AT_ONCE, rounds)))
            for number in range(rounds):
                found = running.popleft().result()
                if number + AT_ONCE < rounds:
                    running.append(pool.submit(work, number + AT_ONCE))
                parts = _gathered(where, found)
                for row in range(min(where.total, count - number * where.total)):
                    yield Moments(*(v[row] for v in parts))
        finally:
            for future in running:
                future.cancel()


def _gathered(where: Layout, part: Moments) -> Moments:
    """The moments of all rows of the mesh, in order."""
    if len(where.rows) == 1:
        return part
    order = np.argsort(np.concatenate([np.array(rows) for rows in where.rows]))

    def gather(values):
        # As words of 32 bits, which jax leaves alone whatever its precision.
        words = np.ascontiguousarray(values, np.float64).view(np.uint32)
        found = np.asarray(multihost_utils.process_allgather(words))
        return found.reshape(-1, words.shape[-1]).view(np.float64)[order]

    return Moments(*map(gather, part))
