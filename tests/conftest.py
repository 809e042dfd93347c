"""What must be set before jax is imported, and a header that says what is tested on what."""

import os


def pytest_configure(config):
    # Two workers share the machine, and its GPU where there is one.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Most of the suite's time is compilation; the cache holds the very code that would be compiled.
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_report_header():
    import jax

    import jaxregions

    device = jax.devices()[0]
    return [
        f"jaxregions: {jaxregions.__version__} in {os.path.dirname(jaxregions.__file__)}",
        f"jax: {jax.__version__} on {device.platform} ({device.device_kind})",
    ]
