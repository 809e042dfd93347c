"""The notebooks run from top to bottom, and the repository holds them without outputs."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_stripped(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [c.id for c in cells if c.outputs or c.execution_count is not None] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_first_code_cell_installs(path):
    first = code_cells(nbformat.read(path, as_version=4))[0]
    assert first.metadata.tags == ["install"]
    assert "%pip install" in first.source


SAYS = {
    "quickstart": "BatchNorm: 128 regions of 64 lines",
    "expected_refinement": "largest |z| of Monte Carlo against the closed form",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_cells_run(path, tmp_path):
    try:
        from nbclient import NotebookClient
    except ModuleNotFoundError as error:
        pytest.fail(f"{error}: pip install '.[test,notebooks]'")
    # In a folder of its own, so that the kernel imports what is installed.
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if "install" not in c.metadata.get("tags", [])]
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    printed = [o.text for c in code_cells(notebook) for o in c.outputs if o.output_type == "stream"]
    assert SAYS[path.stem] in "".join(printed)
