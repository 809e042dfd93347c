import subprocess
import sys

import pytest
from typer.testing import CliRunner

from jaxregions.cli import app

SMALL = [
    "study",
    *("--dataset", "moons", "--widths", "6,5", "--epochs", "0", "--windows", "9"),
    *("--radii", "0.003,0.03,0.3", "--slice-radii", "0.3", "--slice-dimensions", "1,2"),
    *("--batch-size", "64"),
]


def invoke(*args):
    return CliRunner().invoke(app, list(args))


@pytest.mark.slow
def test_study_writes_its_report_and_prints_where(tmp_path):
    result = invoke(*SMALL, "--output", str(tmp_path / "report"))
    assert result.exit_code == 0
    assert str(tmp_path / "report" / "index.html") in result.stdout
    assert "hits, layer 1" in result.stdout
    assert "all layers" in result.stdout
    assert "All layers: 100% of the 52 counts" in " ".join(result.stdout.split())
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--widths", "a,b"), "widths: expected integers with commas between, received 'a,b'"),
        (("--dataset", "cifar"), "dataset: expected one of"),
        (("--radii", "0.1,-1"), "radii: expected numbers > 0"),
        (("--windows", "100000"), "windows: expected at most 400"),
        (("--dataset", "mnist"), "mnist: expected a folder with its files"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_two(tmp_path, monkeypatch, options, message):
    monkeypatch.delenv("JAXREGIONS_DATA", raising=False)
    result = invoke(*SMALL, "--output", str(tmp_path / "never"), *options)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: {message}")
    assert not (tmp_path / "never").exists()


def test_an_output_that_is_a_file_is_rejected(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    result = invoke(*SMALL, "--output", str(file))
    assert result.exit_code == 2
    assert "expected a folder, received the file" in result.stderr
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_interrupting_says_how_to_continue(tmp_path, monkeypatch):
    from jaxregions.study import runner

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.measure, "measure", interrupt)
    result = invoke(*SMALL, "--output", str(tmp_path / "report"))
    assert result.exit_code == 130
    assert "--resume continues from them" in result.stderr


def test_help_groups_the_options():
    result = invoke("study", "--help")
    assert result.exit_code == 0
    for word in ("Network and data", "Training", "Measuring", "Running", "--slice-radii"):
        assert word in result.stdout


def test_info_names_versions_device_and_arithmetic():
    from jaxregions.exact import rational_backend

    result = invoke("info")
    assert result.exit_code == 0
    for word in ("jax ", "flax ", "device", rational_backend()):
        assert word in result.stdout


def test_the_command_line_loads_no_heavy_module_for_its_help():
    code = (
        "import sys, jaxregions.cli;"
        "print([m for m in ('matplotlib', 'sklearn', 'rich.progress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
