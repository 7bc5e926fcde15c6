# SPDX-License-Identifier: Apache-2.0
"""Strict numerics and eight CPU devices for every test; the examples in docstrings, README and docs are tests too."""

import collections
import doctest
import os
import signal
import tempfile

from tallax._quick_compiles import quick_xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests run a program for a moment, so compiling it is most of their time. Without optimizations and without XLA's
# fusion emitters a program compiles in a quarter of the time, and in one part instead of several for several threads,
# in a sixth. `make nightly` runs all tests with programs as users compile them, and tests that are marked `optimized`
# always have the optimizations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Read by XLA when the first backend starts, so before anything creates an array.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
else:
    _one_part = "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", quick_xla_flags(_one_part))

# A shell has what it runs in the background ignore Ctrl-C, and all that this starts: tests that interrupt would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deadlines measure the machine, and compilation falls on the first example.
hypothesis.settings.register_profile("tallax", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tallax")


def _as_users_run_it(namespace: dict) -> None:
    """Examples write to the working folder, use optax, whose schedules mix dtypes, and add biases of a lower rank."""
    namespace["__folder__"] = os.getcwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["__folder__"][1].name)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")


def _strict_again(namespace: dict) -> None:
    before, folder = namespace.pop("__folder__")
    os.chdir(before)
    folder.cleanup()
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


pytest_collect_file = (
    Sybil(
        parsers=[DocTestParser(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)],
        document_types={".py": PythonDocStringDocument},
        patterns=["src/tallax/*.py", "src/tallax/*/*.py", "src/tallax/*/*/*.py"],  # a `**` would stand for one folder
        setup=_as_users_run_it,
        teardown=_strict_again,
    )
    + Sybil(
        parsers=[PythonCodeBlockParser()],
        patterns=["README.md", "docs/*.md", "docs/guides/*.md"],
        excludes=["docs/tutorial.md"],  # tests/test_tutorial.py runs it as the notebook that it also is
        setup=_as_users_run_it,
        teardown=_strict_again,
    )
).pytest()


# --- the time that each file takes ------------------------------------------------------------------------------------


def _processor_seconds():
    """Returns the processor time of this process and of those that it started and awaited."""
    return sum(os.times()[:4])


_last = {"seconds": _processor_seconds()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds to the last report of a test the processor time since the test before."""
    if call.when == "teardown":
        before, _last["seconds"] = _last["seconds"], _processor_seconds()
        item.user_properties.append(("processor seconds", _last["seconds"] - before))
    return (yield)


def pytest_collection_finish():
    """Leaves the collection out of the time of the first test."""
    _last["seconds"] = _processor_seconds()


def pytest_terminal_summary(terminalreporter):
    """Prints the files that took most processor time, which depends less than a clock on what else runs."""
    files = collections.Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "teardown":
            files[report.nodeid.split("::")[0]] += dict(report.user_properties).get("processor seconds", 0)
    if files.total() > 60:  # of a part of the suite it is of no interest
        most = ", ".join(f"{name} {seconds:.0f}" for name, seconds in files.most_common(8))
        terminalreporter.write_line(f"{files.total():.0f} seconds of processor time; {most}")
