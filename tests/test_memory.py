# SPDX-License-Identifier: Apache-2.0
"""A long run holds its memory."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def measured(folder, *options):
    """Returns the figures of `python -m benchmarks.memory`, run in a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "benchmarks.memory", "--output", str(folder), *options]
    status = subprocess.run(command, check=False, env=environment, timeout=1200).returncode
    return status, json.loads((folder / "memory.json").read_text())


@pytest.mark.nightly
@pytest.mark.thorough
def test_memory_of_100_000_steps(tmp_path):
    """After the first 10,000 steps, 90,000 more with logging and checkpoints add less than 2 percent."""
    status, figures = measured(tmp_path)
    assert figures["steps"] == 100_000
    assert len(figures["bytes"]) == 10
    assert figures["growth"] < 0.02
    assert status == 0
