# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment, during a save too: the next run goes on from the last whole checkpoint, to the same end."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60


def start(folder, steps=STEPS):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    command = [sys.executable, "-W", "error", "-m", "tests.checkpoint_worker", str(folder), str(steps)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process, seconds=120):
    """Returns the lines that it prints to its end."""
    try:
        lines = process.communicate(timeout=seconds)[0].splitlines()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, lines
    return lines


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """Two runs killed at random moments, and a third to the end, come to the very bits of one that nobody disturbed."""
    rng, reached = random.Random(0), 0
    undisturbed = start(tmp_path / "undisturbed")
    for kill in range(2):
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line[0] == "start"
        assert int(line[1]) >= reached - 4  # one is being written, and `every` is 2
        while int(line[1]) < (kill + 1) * 15 + rng.randrange(10):
            line = process.stdout.readline().split()
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        reached = int(line[1])
    lines = finish(start(tmp_path / "killed"))
    assert int(lines[0].split()[1]) >= reached - 4
    assert lines[-1].startswith("done ")
    assert lines[-1] == finish(undisturbed)[-1]
    assert lines[-1].split()[2:] == [str(2**32 - 3 + STEPS), str(int(lines[-1].split()[3]))]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [str(STEPS - 2), str(STEPS)]
