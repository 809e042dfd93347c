"""The main job: train BatchNorm and no-BatchNorm twins, measure their regions, write a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxregions.study.config import StudyConfig

if TYPE_CHECKING:
    from jaxregions.study.runner import Study, prepare, run

__all__ = ["Study", "StudyConfig", "prepare", "run"]


def __getattr__(name: str) -> Any:
    # The command line needs only the configuration for its help; jax and the rest can wait.
    if name in ("Study", "prepare", "run"):
        from importlib import import_module

        return getattr(import_module("jaxregions.study.runner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
