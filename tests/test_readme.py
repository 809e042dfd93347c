"""The README's Python blocks print what their comments say; the sections cited exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import jaxregions

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MATHEMATICS = (ROOT / "MATHEMATICS.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PRINT = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
MODULES = sorted(Path(jaxregions.__file__).parent.rglob("*.py"))


def section(title):
    """The README's text under a heading, up to the next one."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cited():
    """(module, section) of every 'MATHEMATICS.md, a and b.' in a docstring."""
    for path in MODULES:
        text = " ".join(path.read_text(encoding="utf-8").split())
        for names in re.findall(r"MATHEMATICS\.md, ([^.;]+)", text):
            for name in names.split(" and "):
                yield path.name, name.strip().lower()


def test_python_blocks_print_what_their_comments_say():
    expected = PRINT.findall("".join(PYTHON))
    assert len(expected) == "".join(PYTHON).count("print(") >= 5
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in PYTHON:
            exec(compile(block, "README.md", "exec"), names)
    assert printed.getvalue().splitlines() == expected


def test_cited_sections_exist():
    citations = list(cited())
    assert len(citations) >= 15
    known = {line[3:].lower() for line in MATHEMATICS.splitlines() if line.startswith("## ")}
    assert [c for c in citations if c[1] not in known] == []


def test_no_docstring_takes_the_readme_for_its_source():
    for path in MODULES:
        assert not re.search(r"Source:[^.]*README", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("name", ["study", "tests"])
def test_commands_are_single_lines(name):
    (block,) = re.findall(rf"<!-- ci:{name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) == 1


def test_quick_setting_is_documented():
    assert "append `--quick` to the line above" in " ".join(section("Two commands").split())


def test_module_table_is_complete():
    rows = re.findall(r"^\| (`.*?) \|", section("Modules"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    root = Path(jaxregions.__file__).parent
    public = {p.stem for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert listed == {name for name in public if not name.startswith("_")}


def test_exactness_table_names_functions_that_exist():
    rows = re.findall(r"^\| (`.*?) \|", section("Exactness"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed <= set(jaxregions.__all__)
    functions = {n for n in jaxregions.__all__ if n[0].islower()} - {"without_batchnorm"}
    assert functions <= listed
