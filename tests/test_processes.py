# SPDX-License-Identifier: Apache-2.0
"""Real processes, joined over the loopback interface, count what one process counts over the same data."""

import contextlib
import copy
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tallax._quick_compiles import quick_xla_flags
from tests.process_worker import Items, by_one_device

ROOT = pathlib.Path(__file__).parent.parent


def run(folder, processes, devices, variants, seconds=120):
    """Runs the worker in several processes and returns what each printed; none outlives the call.

    Raises:
        AssertionError: one failed, or took longer; with what it had written to stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Not conftest's eight devices; and programs this small take longer to optimize than to run.
        "XLA_FLAGS": quick_xla_flags("--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"),
        "TALLAX_TEST_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    started = []
    try:
        for rank in range(processes):
            arguments = [str(argument) for argument in (port, processes, rank, devices, *variants)]
            with open(folder / f"{rank}.out", "wb") as out, open(folder / f"{rank}.err", "wb") as err:
                command = [sys.executable, "-m", "tests.process_worker", *arguments]
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True)
                )
            (folder / f"{rank}.pid").write_text(str(started[-1].pid))
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in started) and time.monotonic() < deadline:
            if any(process.poll() for process in started):  # one failed: the others would wait for it
                break
            time.sleep(0.05)
        codes = [process.poll() for process in started]
    finally:
        for process in started:
            # SIGKILL, since jax.distributed handles SIGTERM; the group, so that nothing it started stays either.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    errors = "\n".join((folder / f"{rank}.err").read_text()[-3000:] for rank in range(processes))
    assert codes == [0] * processes, f"exit codes {codes} (None: still running after {seconds} s)\n{errors}"
    return [json.loads((folder / f"{rank}.out").read_text().splitlines()[-1]) for rank in range(processes)]


@functools.cache
def by_one_process():
    """Returns the totals of this one process over all of the data, on one device."""
    return by_one_device(Items()).totals()


def assert_same_totals(totals, expected):
    """Integers and extremes to the last unit; means and moments as near as another order of summation leaves them."""
    assert totals.keys() == expected.keys()
    for name, leaves in expected.items():
        for found, wanted in zip(totals[name], leaves, strict=True):
            found, wanted = np.asarray(found), np.asarray(wanted)
            if wanted.dtype.kind == "f" and name in ("moments", "ema"):
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
            else:
                assert found.dtype == wanted.dtype
                assert np.array_equal(found, wanted), (name, found, wanted)


QUICK = ["host-local", "shares", "save"]  # `save` trains as `graph` does


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder that two processes of one device saved to, and their output; starting takes seconds."""
    folder = tmp_path_factory.mktemp("processes")
    return folder, run(folder, 2, 1, QUICK)


def assert_all_counted(printed):
    """Every process has, for each variant, the totals of one process."""
    assert printed
    for found in printed:
        # A batch that was not made global is counted in part by each process; only comparing them tells.
        if "host-local" in found:
            text = found.pop("host-local")
            assert "the copies of a replicated value differ between devices or processes" in text
            assert text.startswith("items.")
        for variant, totals in found.items():
            expected = by_one_process()
            if variant in ("shares", "wide-shares"):  # an extreme came at a count of its own replica
                for field in (2, 3):
                    totals["extrema"][field] = expected["extrema"][field]
            assert_same_totals(totals, expected)


@pytest.mark.slow
def test_two_processes_count_the_same_as_one(saved):
    """Every process reads the totals of all data: counts and histograms to the last unit, bin by bin."""
    _, printed = saved
    assert [found.keys() for found in printed] == [set(QUICK)] * 2
    assert_all_counted(copy.deepcopy(printed))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("processes", "devices", "variants"),
    [
        (2, 2, ["explicit", "shard-map", "compiled"]),
        (2, 2, ["graph", "tree", "shares", "wide-shares"]),
        (4, 1, ["graph", "shares", "compiled"]),
    ],
    ids=["2x2", "2x2-more", "4x1"],
)
def test_processes_count_the_same_as_one_process(tmp_path, processes, devices, variants):
    """So do processes of several devices, and more of them."""
    printed = run(tmp_path, processes, devices, variants)
    assert [found.keys() for found in printed] == [set(variants)] * processes
    assert_all_counted(printed)


@pytest.mark.slow
def test_fewer_processes_restore(saved):
    """One process restores what two saved: totals are exact, and parameters lie where the new model has them."""
    (found,) = run(saved[0], 1, 1, ["restore"])
    assert_same_totals(found["restore"], by_one_process())


@pytest.mark.thorough
def test_more_processes_restore(tmp_path):
    """So do two processes what one with two devices saved."""
    run(tmp_path, 1, 2, ["save"])
    for found in run(tmp_path, 2, 1, ["restore"]):
        assert_same_totals(found["restore"], by_one_process())


@pytest.mark.slow
def test_no_process_outlives_the_test(tmp_path):
    """A group that hangs is ended, and the test reports it."""
    with pytest.raises(AssertionError, match=r"exit codes \[None, None\]"):
        run(tmp_path, 2, 1, ["hang"], seconds=3)
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{rank}.pid").read_text()), 0)
