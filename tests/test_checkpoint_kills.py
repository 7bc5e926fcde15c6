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

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import tallax
from tallax._quick_compiles import quick_xla_flags

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60


def start(folder, steps=STEPS):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    environment["XLA_FLAGS"] = quick_xla_flags("--xla_backend_optimization_level=0")
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


@pytest.mark.thorough
def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """A run killed at a random moment, and another to the end, come to the very bits of one that nobody disturbed."""
    rng = random.Random(0)
    undisturbed, process = start(tmp_path / "undisturbed"), start(tmp_path / "killed")
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line == ["start", "0"]
    while int(line[1]) < 15 + rng.randrange(10):
        line = process.stdout.readline().split()
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    reached = int(line[1])
    lines = finish(start(tmp_path / "killed"))
    assert int(lines[0].split()[1]) >= reached - 4  # one is being written, and `every` is 2
    assert lines[-1].startswith("done ")
    assert lines[-1] == finish(undisturbed)[-1]
    assert lines[-1].split()[2:] == [str(2**32 - 3 + STEPS), str(STEPS * 16 * 256)]  # steps, and outputs counted
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [str(STEPS - 2), str(STEPS)]


# --- the demo ---------------------------------------------------------------------------------------------------------

EPOCHS, KILLS, BATCHES = 17, 10, 22


def demo(folder):
    """Starts the demo, quietly, as `make demo` does, but that it need not compile each time anew."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(ROOT / "examples" / "digits_moe.py"), "--epochs", str(EPOCHS), "--runs", str(folder)]
    output = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--no-plots"], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
    )


def steps_in(folder):
    """Returns the numbers of the whole checkpoints, and whether one is being written."""
    names = [path.name for path in folder.glob("digits-moe-*/checkpoints/*")]
    return {int(name) for name in names if name.isdigit()}, any(not name.isdigit() for name in names)


def kill_once(folder, rng, *, in_a_save):
    """Lets the demo make another checkpoint or two, and kills it at a random moment, or while it writes the second."""
    before = max(steps_in(folder)[0], default=0)
    process, deadline = demo(folder), time.monotonic() + 120
    moment = None
    while process.poll() is None and time.monotonic() < deadline:
        steps, writes = steps_in(folder)
        if max(steps, default=0) > before:
            moment = moment or time.monotonic() + rng.random() * 0.2
            quick = max(steps) > before + BATCHES  # so that ten kills come before the end on any machine
            if quick or (writes if in_a_save else time.monotonic() > moment):
                break
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    assert ("Resuming after epoch" in output) == (before > 0)
    return steps_in(folder)[1]


def assert_same_curves(killed, undisturbed):
    """Every record of the one is in the other, at no step twice; where it went on, that has one more."""
    assert set(killed.scalars) == set(undisturbed.scalars)
    for name, series in undisturbed.scalars.items():
        found = dict(zip(killed.scalars[name].steps, killed.scalars[name].values, strict=True))
        assert len(found) == len(killed.scalars[name].steps)
        assert [found[step] for step in series.steps] == series.values, name
    for name, series in undisturbed.histograms.items():
        found = dict(zip(killed.histograms[name].steps, killed.histograms[name].values, strict=True))
        assert [found[step] for step in series.steps] == series.values, name


@pytest.mark.thorough
def test_the_demo_killed_ten_times_ends_as_if_it_had_not_been(tmp_path):
    """Counters, histograms, parameters, optimizer and streams are those of a run that nobody disturbed, to the bit."""
    rng = random.Random(0)
    during = [kill_once(tmp_path / "killed", rng, in_a_save=kill % 2 == 0) for kill in range(KILLS)]
    assert sum(during) >= 3  # they left what they were writing
    final = max(steps_in(tmp_path / "killed")[0])
    assert final < EPOCHS * BATCHES
    found = []
    for name in ("killed", "undisturbed"):
        process = demo(tmp_path / name)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        assert ("Resuming after epoch" in output) == (name == "killed")
        (path,) = (tmp_path / name).glob(f"digits-moe-*/checkpoints/{EPOCHS * BATCHES}/default")
        with ocp.StandardCheckpointer() as checkpointer:
            found.append(checkpointer.restore(path))
    assert_same_curves(*(tallax.Run(*(tmp_path / name).iterdir()) for name in ("killed", "undisturbed")))
    left, right = (jax.tree.leaves_with_path(tree) for tree in found)
    assert len(left) > 50
    for (path, one), (other_path, other) in zip(left, right, strict=True):
        assert path == other_path
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), jax.tree_util.keystr(path)
