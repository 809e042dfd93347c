"""What imports what: the order of the modules, and how light ``import jaxregions`` is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxregions

ROOT = Path(jaxregions.__file__).parent  # the package that is installed

# From the ground up: a module imports only from its own row and rows above it.
ORDER = (
    ("exact", "_records", "_progress", "_interrupts"),
    ("activations",),
    ("windows",),
    ("_criterion", "hyperplanes"),
    ("_lines", "arrangements"),
    ("tracing",),
    ("batchnorm",),
    ("engines",),
    ("verification",),
    ("regions", "partitions"),
    ("depth", "parents"),
    ("density", "batches"),
    ("theory", "refinement"),
    ("zoo", "datasets"),
    ("training",),
    ("plotting",),
    ("study", "cli"),
)
STRANGERS = ({"theory", "refinement"}, {"zoo", "datasets"})  # of one row, and yet apart
# Rows are an upper bound; these import even less.
AT_MOST = {
    "activations": set(),
    "density": {"_records", "windows", "hyperplanes"},
    "plotting": {
        "exact",
        "_records",
        "activations",
        "windows",
        "hyperplanes",
        "regions",
        "partitions",
    },
    "theory": {
        "exact",
        "_records",
        "activations",
        "windows",
        "hyperplanes",
        "arrangements",
        "batchnorm",
        "depth",
    },
    "verification": {"exact", "tracing"},
}
HEAVY = ("matplotlib", "sklearn", "scipy.stats", "rich", "typer", "jaxregions.zoo")
MOST_LINES = 450


def files():
    return sorted(ROOT.rglob("*.py"))


def room(path):
    """The row entry a file belongs to: ``batchnorm`` for batchnorm/linen.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The dotted names that a file imports anywhere: 'numpy', 'jaxregions.windows.Window'."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(path):
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "jaxregions" and len(parts) > 1}


def run(code):
    """stdout of the code in a fresh interpreter, which does not look for modules in the cwd."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_has_a_row():
    known = {name for row in ORDER for name in row} | {"__init__"}
    assert {room(path) for path in files()} <= known


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_only_from_rows_above(path):
    row = {name: i for i, names in enumerate(ORDER) for name in names}
    me, found = room(path), rooms_imported(path)
    if me == "__init__":
        found -= {"__version__"}
        allowed = set(row) - {"zoo", "datasets", "training", "plotting", "study", "cli"}
    else:
        apart = {n for pair in STRANGERS if me in pair for n in pair} - {me}
        allowed = AT_MOST.get(me, {n for n in row if row[n] <= row[me]} - apart) | {me}
    assert found <= allowed


def test_only_tracing_touches_jax_extend():
    touching = {
        room(path) for path in files() if any(n.startswith("jax.extend") for n in imports(path))
    }
    assert touching == {"tracing"}


def test_no_module_reaches_into_private_jax():
    assert not [
        (path, name) for path in files() for name in imports(path) if name.startswith("jax._src")
    ]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_fit_in_one_reading(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_import_is_light_and_leaves_x64_as_it_was():
    # Beyond what flax pulls in (its summaries use rich).
    code = f"""
import sys, flax.linen, flax.nnx
before = set(sys.modules)
import jaxregions
print([m for m in {HEAVY} if m in sys.modules and m not in before])
print([m for m in ("matplotlib", "sklearn") if m in sys.modules])
print(sys.modules["jax"].config.jax_enable_x64)
"""
    assert run(code) == "[]\n[]\nFalse"


COUNT = """
import sys
sys.modules.update(dict.fromkeys(("flint", "highspy")))  # None: importing them fails
import numpy as np
import jaxregions as jr
from jaxregions import exact
# Three lines through the origin, and one that touches the window at its corner (1, 1).
planes = jr.Hyperplanes([[1, 0], [0, 1], [1, 1], [1, 1]], [0, 0], [[0], [0], [0], [2]])
window = jr.Window(np.zeros(2), 1)
counts, hits = jr.count_arrangement(planes, window), jr.count_hits(planes, window)
print(exact.rational_backend(), counts.regions, hits.hits, hits.tangencies)
"""


def test_answers_without_the_native_parts():
    assert run(COUNT) == "fractions 6 3 1"


def test_every_public_name_exists():
    assert [n for n in jaxregions.__all__ if not hasattr(jaxregions, n)] == []
    assert len(set(jaxregions.__all__)) == len(jaxregions.__all__)
