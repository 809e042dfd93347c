"""Code in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = r"""
import re
from pathlib import Path
(peak,) = re.findall(r"VmHWM:\s*(.*) kB", Path("/proc/self/status").read_text())
print(peak)
"""


def in_a_process(code):
    """What the code prints; it may import what tests do."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    run = [sys.executable, "-c", code, "0"]
    return subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout


def with_peak(code):
    """What the code prints, and the process's peak memory in kB, which ``getrusage`` mixes with
    its parent's."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads the peak from /proc")
    *answers, peak = in_a_process(code + PEAK).split()
    return *map(int, answers), int(peak)
