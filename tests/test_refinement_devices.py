"""The same bits on one device, on many, and in several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import jaxregions

ROOT = Path(jaxregions.__file__).parents[1]

SETTING = """
import hashlib, sys
import jax, numpy as np
from jax.sharding import Mesh
if len(sys.argv) > 1:
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import jaxregions as jr
from jaxregions.zoo import MLP

batch = np.random.default_rng(0).normal(size=(16, 2))
windows = jr.Window(np.array([[0.8, -0.5], [0.0, 0.0], [2.0, 1.0]]), 0.4)

def digest(mesh, widths=(6,), samples=75, **options):
    model = MLP(widths=widths, num_outputs=1)
    options = {"block_size": 8, "progress": False} | options
    found = jr.expected_refinement(
        jax.random.key(0), model, batch, windows, samples, mesh=mesh, **options
    )
    data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found))
    return hashlib.sha256(data).hexdigest()

def mesh_of(*shape):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, ("samples", "windows")[: len(shape)])
"""
HITS = "print(digest(None, regions='none'), digest(mesh_of(8), regions='none'))"
MESHES = """
for options in ({}, {"samples": 4000, "target_standard_error": 0.05}):
    print(*(digest(m, **options) for m in (None, mesh_of(8), mesh_of(4, 2), mesh_of(3))))
print(*(digest(m, (3, 2), 3, block_size=1) for m in (None, mesh_of(2))))
"""
PROCESSES = """
print(digest(mesh_of(jax.device_count())))
print(digest(mesh_of(jax.device_count()), samples=4000, target_standard_error=0.05))
print(digest(mesh_of(jax.device_count()), (3, 2), 3, block_size=1))
"""


def start(code, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SETTING + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


def lines(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return [line.split() for line in out.splitlines() if len(line.split()[0]) == 64]


@pytest.mark.slow
def test_eight_devices_give_the_bits_of_one():
    ((one, eight),) = lines(start(HITS, devices=8))
    assert one == eight


@pytest.mark.slow
def test_any_mesh_gives_the_bits_of_one_device():
    for digests in lines(start(MESHES, devices=8)):
        assert len(set(digests)) == 1


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(PROCESSES, port, index, devices=2) for index in range(2)]
    alone = start(PROCESSES, devices=1)
    first, second, single = map(lines, (*both, alone))
    assert len(single) == 3
    assert first == second == single
