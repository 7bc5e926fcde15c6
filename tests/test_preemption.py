# SPDX-License-Identifier: Apache-2.0
"""SIGTERM in real processes: the running step ends, everything is saved, and the program exits with the chosen code."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from flax import nnx

import tallax
from tallax._quick_compiles import quick_xla_flags

ROOT = pathlib.Path(__file__).parents[1]
CODE = 75  # of preemption_worker.py


def start(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = quick_xla_flags("--xla_backend_optimization_level=0")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-W", "error", "-m", "tests.preemption_worker", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(process, line):
    """Reads what a process prints up to a line."""
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.strip() == line:
            return
    raise AssertionError(f"{line!r} did not come")


def finish(processes, seconds=120):
    """Returns the lines that each prints to its end; none outlives the call."""
    deadline = time.monotonic() + seconds
    try:
        return [each.communicate(timeout=max(1, deadline - time.monotonic()))[0].splitlines() for each in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_sigterm_saves_and_exits(tmp_path):
    """The step at which SIGTERM came is saved, at any number; the next run goes on there, to the bits of one run."""
    process = start(tmp_path / "a", 10_000)
    wait_for(process, "step 7")
    process.send_signal(signal.SIGTERM)
    (lines,) = finish([process])
    assert process.returncode == CODE, lines
    last = int(lines[-1].split()[1]) if lines else 7
    assert last < 100
    saved = [int(path.name) for path in (tmp_path / "a").iterdir()]
    assert saved == [last]
    runs = [start(tmp_path / "a", last + 5), start(tmp_path / "b", last + 5)]
    resumed, straight = finish(runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert resumed[0] == f"start {last}"
    assert resumed[-1] == straight[-1]
    assert resumed[-1].split()[2:] == [str(last + 5)] * 2


@pytest.mark.thorough
def test_a_second_sigterm_ends_the_program_at_once(tmp_path):
    """The second signal does what SIGTERM did before: nobody has to wait for a step that hangs."""
    code = (
        "import sys, time, tallax\n"
        f"c = tallax.Checkpoints({str(tmp_path)!r}, preemption_exit_code=75)\n"
        "print('ready', flush=True)\ntime.sleep(0.5) or [time.sleep(0.1) for _ in range(600)]\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    finish([process])
    assert process.returncode == -signal.SIGTERM


@pytest.mark.thorough
def test_two_processes_save_at_one_step(tmp_path):
    """A signal to one process stops both at the same step, with one checkpoint of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path, 10_000, port, 2, rank) for rank in range(2)]
    for process in processes:
        wait_for(process, "step 5")
    processes[1].send_signal(signal.SIGTERM)
    lines = finish(processes)
    assert [process.returncode for process in processes] == [CODE, CODE], lines
    (saved,) = (int(path.name) for path in tmp_path.iterdir())
    steps = [[line for line in each if line.startswith("step")] for each in lines]  # Gloo prints, too
    assert [each[-1] for each in steps] == [f"step {saved}"] * 2


def test_the_handler_from_before_comes_back(tmp_path):
    """Leaving the block restores the handler of SIGTERM, whether a signal came or not."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    own = signal.getsignal(signal.SIGTERM)
    try:
        with tallax.Checkpoints(tmp_path, preemption_exit_code=3):
            assert signal.getsignal(signal.SIGTERM) != own
        assert signal.getsignal(signal.SIGTERM) is own
        model = nnx.Dict(step=tallax.Counter())
        with tallax.Checkpoints(tmp_path, every=10, preemption_exit_code=3) as checkpoints:
            assert not checkpoints.save(1, model)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(SystemExit) as stopped:
                checkpoints.save(2, model)
        assert stopped.value.code == 3
        assert checkpoints.steps() == [2]
        assert signal.getsignal(signal.SIGTERM) is own
        assert seen == []
    finally:
        signal.signal(signal.SIGTERM, before)
