"""What must be set before jax is imported, and a header that says what is tested on what."""

import gc
import os
import signal
from importlib.metadata import version
from importlib.util import find_spec

# XLA's older emitters of fused loops compile in two thirds of the time. The slow tests compile as
# users do, as does everything with XLA_FLAGS set: XLA_FLAGS= pytest.
QUICKLY = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", QUICKLY)
    # Two workers share the machine, and its GPU where there is one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Most of the suite's time is compilation; the cache holds the very code that would be compiled.
    # What is compiled faster than it is written and read is not kept.
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_sessionstart():
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(50_000, 20, 50)  # what was compiled stays, to look through it takes seconds


def pytest_report_header():
    # Without importing them: the workers do, and wait for this process.
    spec = find_spec("jaxregions")
    folder = os.path.dirname(spec.origin or "") if spec is not None else "no folder"
    return [f"jaxregions: {version('jaxregions')} in {folder}", f"jax: {version('jax')}"]
