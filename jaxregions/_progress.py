"""A progress bar for calls that last."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["watching"]

PATIENCE = 2.0  # seconds before a bar appears


@contextmanager
def watching(
    total: int, wanted: bool | None, *, of: str = "windows"
) -> Iterator[Callable[..., None]]:
    """Yields watch(finished, cells so far = None), which draws a bar on stderr.

    Args:
      total: what there is to finish, counted in ``of``.
      wanted: None: once the call has lasted ``PATIENCE`` seconds, if stderr is a terminal.
    """
    start, bar, lock = time.monotonic(), None, threading.Lock()
    wanted = sys.stderr.isatty() if wanted is None else wanted

    def watch(done: int, cells: int | None = None) -> None:
        nonlocal bar
        if not wanted or (bar is None and time.monotonic() - start < PATIENCE):
            return
        with lock:  # callers may be threads
            bar = bar or _bar(total, of)
        bar[0].update(bar[1], completed=done, cells="" if cells is None else f"{cells:,} cells")

    try:
        yield watch
    finally:
        if bar is not None:
            bar[0].stop()


def _bar(total: int, of: str):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[cells]}"),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    progress.start()
    return progress, progress.add_task(of, total=total, cells="")
