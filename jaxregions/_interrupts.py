"""Ctrl-C for calls that end with what they have proven."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Halt", "interruptible"]


class Halt:
    """A flag: stop now. It takes no lock, so a signal handler may raise it at any time."""

    def __init__(self) -> None:
        self._raised = False

    def set(self) -> None:
        self._raised = True

    def is_set(self) -> bool:
        return self._raised


@contextmanager
def interruptible() -> Iterator[Halt]:
    """Yields a flag that the first Ctrl-C raises, in place of KeyboardInterrupt; a second one is a
    KeyboardInterrupt again.

    An exception may come between any two instructions, or be lost in a callback of the garbage
    collector; a flag is looked at where nothing is half done. Outside the main thread, or where
    somebody else handles the signal, nothing is changed.
    """
    halt = Halt()
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield halt
        return

    def handle(number: int, frame: Any) -> None:
        if halt.is_set():
            signal.default_int_handler(number, frame)
        halt.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield halt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
