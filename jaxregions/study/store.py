"""The output folder: checkpoints to resume from, and the result files."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxregions.study.config import StudyConfig
from jaxregions.study.statistics import FIELDS, Row
from jaxregions.training import TrainState, load_state

__all__ = [
    "FIGURES",
    "DamagedCheckpoint",
    "as_csv",
    "claim",
    "finished",
    "prepare_folder",
    "read_checkpoint",
    "read_state",
    "rows_as_csv",
    "rows_as_json",
    "state_path",
    "versions",
    "write_checkpoint",
    "write_text",
]

FIGURES = (
    "training",
    "hits",
    "regions",
    "expected",
    "network",
    "full",
    "deeper",
    "radius",
    "arrangement",
    "partitions",
    "slopes",
)
FILES = ("index.html", "results.csv", "expected.csv", "results.json", "windows.npz")
MARK = "config.json"
_PACKAGES = ("jaxregions", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
_CHECKPOINT = re.compile(r"(batch|none)-(\d{6,})\.(npz|msgpack)")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            import jaxregions

            found[name] = jaxregions.__version__
    return found


def prepare_folder(config: StudyConfig) -> None:
    """Check that the study may write to its folder; nothing is written or removed.

    Raises:
      ValueError: the output is no folder; it holds a file with a result's name that no study wrote;
        to resume: its study has another configuration or other versions.
    """
    root = Path(config.output)
    if root.exists() and not root.is_dir():
        raise ValueError(f"output: expected a folder, received the file {root}")
    before = _marked(root)
    if before is None:
        taken = [p for p in (*_result_files(root), root / MARK) if p.exists()]
        if taken:
            raise ValueError(
                f"output: expected a folder without {', '.join(p.name for p in taken)} or one that "
                f"an earlier study wrote, received {root}"
            )
        return
    if config.resume:
        now = _description(config)
        changes = [
            f"{name} was {before[part].get(name)!r}, is {now[part].get(name)!r}"
            for part in ("config", "versions")
            for name in sorted(before[part].keys() | now[part].keys())
            if before[part].get(name) != now[part].get(name)
        ]
        if changes:
            raise ValueError(
                f"resume: expected the configuration of the study in {root}, received another one: "
                f"{'; '.join(changes)}"
            )


def claim(config: StudyConfig) -> None:
    """Make the folder this study's: remove the files of an earlier one, unless resuming."""
    root = Path(config.output)
    old = _marked(root)
    if old is not None and not config.resume:
        for path in (*_result_files(root), *_checkpoint_files(root)):
            path.unlink(missing_ok=True)
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    (root / "figures").mkdir(exist_ok=True)
    write_text(root / MARK, json.dumps(_description(config), indent=2) + "\n")


def _description(config: StudyConfig) -> dict[str, Any]:
    return {
        "format": "jaxregions study 1",
        "config": config.results_fields(),
        "versions": versions(),
    }


def _marked(root: Path) -> dict[str, Any] | None:
    """What config.json says, if a study wrote it."""
    try:
        found = json.loads((root / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and str(found.get("format", "")).startswith("jaxregions study")
    described = ours and all(isinstance(found.get(p), dict) for p in ("config", "versions"))
    return found if described else None


def _result_files(root: Path) -> list[Path]:
    figures = [root / "figures" / f"{name}.png" for name in FIGURES]
    return [root / name for name in FILES] + figures


def _checkpoint_files(root: Path) -> list[Path]:
    folder = root / "checkpoints"
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)]


def state_path(config: StudyConfig, model: str, epoch: int) -> Path:
    """Where the training state after an epoch is."""
    return Path(config.output) / "checkpoints" / f"{model}-{epoch:06d}.msgpack"


def finished(config: StudyConfig, model: str) -> list[int]:
    """The epochs that are measured and stored: a prefix of ``config.schedule``."""
    done = []
    for epoch in config.schedule:
        if not state_path(config, model, epoch).with_suffix(".npz").is_file():
            break
        done.append(epoch)
    return done


class DamagedCheckpoint(ValueError):
    """A stored checkpoint cannot be read."""

    def __init__(self, path: Path, reason: Exception):
        super().__init__(
            f"{path}: expected a checkpoint of this study, received a damaged one ({reason}); "
            "without it and the later ones --resume measures again from there"
        )


def read_checkpoint(config: StudyConfig, model: str, epoch: int) -> dict[str, np.ndarray]:
    """The raw numbers that ``write_checkpoint`` stored.

    Raises:
      DamagedCheckpoint: the file is not whole.
    """
    path = state_path(config, model, epoch).with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedCheckpoint(path, error) from error


def read_state(config: StudyConfig, model: str, epoch: int, like: TrainState) -> TrainState:
    """The training state after an epoch.

    Raises:
      DamagedCheckpoint: the file is not whole.
    """
    path = state_path(config, model, epoch)
    try:
        return load_state(path, like)
    except ValueError as error:
        raise DamagedCheckpoint(path, error) from error


def write_checkpoint(
    config: StudyConfig, model: str, epoch: int, arrays: dict[str, np.ndarray]
) -> None:
    """Store raw numbers; the state comes first, so that a stored checkpoint always has one."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    path = state_path(config, model, epoch)
    _replace(path.with_suffix(".npz"), buffer.getvalue())
    for earlier in config.schedule:
        if earlier < epoch:
            state_path(config, model, earlier).unlink(missing_ok=True)


def rows_as_csv(rows: Iterable[Row]) -> str:
    """One line per row; what is not defined or does not apply is empty."""
    return as_csv([dict(zip(FIELDS, row.flat(), strict=True)) for row in rows])


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header of the first row's names, and one line per row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(["" if _missing(v) else v for v in row.values()])
    return out.getvalue()


def rows_as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One object per row; null where not defined, "inf" as text."""

    def value(v):
        return None if _missing(v) else "inf" if v == math.inf else v

    return [{f: value(v) for f, v in zip(FIELDS, r.flat(), strict=True)} for r in rows]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    _replace(path, text.encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
