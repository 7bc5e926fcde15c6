# SPDX-License-Identifier: Apache-2.0
"""statecheck finds every wrong module of the corpus, fails none of the right ones, and leaves nothing behind."""

import dataclasses
import functools
import io
import json
import pickle
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import tallax
from tallax.checking import Finding, Outcome, Report
from tallax.checking._check_results import condensed
from tallax.checking._copy_checks import copies
from tallax.checking._program import Program, called, program_of
from tallax.checking._progress import progress_line
from tallax.checking._snapshot import attribute_of, snapshot
from tallax.checking._statecheck import reference_of, results
from tallax.checking._transformations import GRAPH, MODES, TRANSFORMATIONS
from tallax.checking._width_checks import widths
from tests.corpus.case import Counted
from tests.right_modules import RIGHT
from tests.wrong_modules import ARGUABLE, WRONG

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))


pytestmark = pytest.mark.usefixtures("standard_promotion")


def blames(finding, case):
    """Whether a finding is by one of the case's rules, at its path or below, and as grave as it should be."""
    below = case.path is None or finding.path == case.path or finding.path.startswith(case.path + "/")
    return finding.is_warning == case.is_warned and finding.rule in case.rules and below


# --- the corpus -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_finds_every_fault(name):
    """Each wrong module fails by the expected rule, at the attribute at fault."""
    case = WRONG[name]
    findings = []
    with GRAPH.active():
        program = program_of(case.make, case.inputs, 3, case.call)
        for result in results(program, reference_of(program)):
            if isinstance(result, Finding):
                findings.append(result)
            if findings and blames(findings[-1], case):  # the rest would only repeat it
                break
    assert any(blames(finding, case) for finding in condensed(findings)), [str(finding) for finding in findings]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(name):
    """No right module fails, and every check of it could be made."""
    case = RIGHT[name]
    report = tallax.statecheck(case.make, *case.inputs, call=case.call)
    assert report.failures == (), str(report)
    assert not [cell for cell in report.cells if "failed: " in cell.note]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARGUABLE)
def test_opinions_differ(name):
    """A module that may be intended fails by no other rule than the expected one."""
    case = ARGUABLE[name]
    report = tallax.statecheck(case.make, *case.inputs, call=case.call)
    assert {finding.rule for finding in report.failures} <= case.rules, str(report)


# --- the report -------------------------------------------------------------------------------------------------------


class Rebinds(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.step = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        self.step = self.step + 1
        return self.layer(x)


@pytest.fixture(scope="module")
def reports():
    """One report with failures and one without."""
    return tallax.statecheck(Rebinds, X), tallax.statecheck(Counted, X)


def test_a_finding_is_complete(reports):
    """A failure has the attribute, the rule, the value, the expected value, the line and the fix."""
    wrong, right = reports
    finding = wrong.failures[0]
    assert (finding.rule, finding.path) == ("replaced-variable", "step")
    assert str(finding) == textwrap.dedent(
        f"""\
        step: was a Variable, but after a call it is a bare array: transformations, optimizers and checkpoints no \
longer see it as state. [replaced-variable]
          where:    plain calls; jit (graph_updates=False); jit (tree); jit (split/merge); jit, donated \
(graph_updates=False); jit, donated (tree); and 36 more
          got:      3
          expected: a Variable
          source:   test_statecheck.py:{line_of("self.step = self.step + 1")}: self.step = self.step + 1
          fix:      self.step[...] = value keeps the Variable; or derive from tallax.Module, which refuses this; a \
count is self.step += 1 on a tallax.Counter"""
    )
    assert wrong.failures == (finding,)
    assert right.passed


def line_of(text):
    """Returns the number of the first line of this file that is `text`."""
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, 1) if line.strip() == text)


def test_every_cell_is_there(reports):
    """The table has each transformation in each of its modes, and each was run."""
    _, right = reports
    modes, rows = right.matrix()
    assert modes == [mode.name for mode in MODES]
    for transformation in TRANSFORMATIONS:
        for mode, cell in zip(MODES, rows[transformation.name], strict=True):
            assert (cell is not None) == (transformation.run_in(mode) is not None)
            assert cell is None or cell.outcome is Outcome.PASSED
    assert all(cell.outcome in (Outcome.PASSED, Outcome.WARNED) for cell in right.cells)


def test_raise_on_failure(reports):
    """It raises an AssertionError with the findings' text, or gives the report back."""
    wrong, right = reports
    with pytest.raises(AssertionError, match="replaced-variable") as caught:
        wrong.raise_on_failure()
    assert isinstance(caught.value, tallax.CheckFailedError)
    assert right.raise_on_failure() is right


def test_reports_are_values(reports):
    """A report is frozen, and survives JSON."""
    for report in reports:
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.name = ""
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_it_prints(reports):
    """The text and the rich table have every check, the findings and the result."""
    for report in reports:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(report)
        for text in (str(report), console.export_text()):
            for cell in report.cells:
                assert cell.check in text
            for finding in report.findings:
                assert f"[{finding.rule}]" in text
            assert report.summary() in text.replace("\n", " ").replace("  ", " ") or report.summary() in text


# --- what it leaves behind --------------------------------------------------------------------------------------------


def test_it_leaves_nothing_behind():
    """The methods of nnx.Variable, the mode and the model are restored."""
    methods = nnx.Variable.set_value, nnx.Variable.set_raw_value
    model = Counted(nnx.Rngs(0))
    metadata = dict(model.count.get_metadata())
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        before = nnx.state(model)
        tallax.statecheck(model, X)  # made by cloning
        after = nnx.state(model)
        assert nnx.split(model)  # still in tree mode, which would refuse what is shared
    assert (nnx.Variable.set_value, nnx.Variable.set_raw_value) == methods
    assert dict(model.count.get_metadata()) == metadata
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(jax.device_get(a), jax.device_get(b)), before, after))


def test_progress_is_reported():
    """Each check is announced as it begins."""
    told = []
    tallax.statecheck(Counted, X, calls=2, on_progress=told.append)
    assert told[0] == "plain calls"
    assert {"transformations", "jit graph", "scan tree", "eval mode", "widths"} <= set(told)


@pytest.mark.thorough
def test_a_call_can_be_any_function_of_the_model():
    """`call=` checks a training step, with the loss it makes."""

    def step(model, x):
        loss, grads = tallax.value_and_grad(lambda model, x: (model(x) ** 2).sum())(model, x)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads)
        nnx.update(model, params)
        return loss

    def lost(model, x):
        return jax.jit(lambda model, x: model(x))(model, x)

    report = tallax.statecheck(Counted, X, call=lost)
    assert ("lost-update", "count") in {(finding.rule, finding.path) for finding in report.failures}
    report = tallax.statecheck(Counted, X, call=step)
    assert report.passed, str(report)  # a step writes parameters: so it should


@pytest.mark.thorough
def test_state_that_a_call_makes_is_distinguished_from_changes():
    """Sown values are lost in other modes than Flax's default; the remedy is to take them out."""

    class Sowing(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            y = x * self.scale[...]
            self.sow(nnx.Intermediate, "mean", y.mean())
            return y

    report = tallax.statecheck(Sowing, X)
    (first,) = report.failures  # three calls sow three values, and it is one fault
    assert [(finding.rule, finding.path) for finding in report.warnings] == [
        ("lost-update", "mean"),
        ("round-trip", ""),
    ]  # a local class does not pickle
    assert (first.rule, first.path) == ("lost-update", "mean")
    assert first.message == "is created by a call, but does not exist after the call."
    assert "nnx.capture or nnx.pop" in first.fix


def test_state_that_calls_make_is_named_by_its_attribute():
    """A value for each call is named by one attribute, at any depth, also if it had values before."""
    start = snapshot(nnx.Dict(a=nnx.List([nnx.Variable(jnp.zeros(()))]), b=nnx.Dict(c=nnx.Variable(jnp.zeros(())))))
    assert attribute_of("a/0", start) == "a/0"
    assert attribute_of("a/1", start) == "a"
    assert attribute_of("b/sown/2", start) == "b/sown"
    assert attribute_of("b/sown/2/loss", start) == "b/sown"
    assert attribute_of("mean/0", start) == "mean"
    assert attribute_of("b/d", start) == "b/d"
    assert attribute_of("new", {}) == "new"


def _to_module(what):
    class Holds(nnx.Module):
        def __init__(self):
            self.inner = nnx.Dict(kept=what)

        def __call__(self, x):
            return x

    return Holds


@pytest.mark.parametrize(
    ("what", "path", "says"),
    [
        (nnx.relu, "inner/kept", "holds relu of jax, which pickle cannot copy."),
        (jax.nn.silu, "inner/kept", "holds silu of jax, which pickle cannot copy."),
        (lambda x: x, "inner/kept", "holds <lambda> of tests, which pickle cannot copy."),
        (functools.partial(nnx.relu), "inner/kept", "holds relu of jax, which pickle cannot copy."),
        ((1, lambda x: x), "inner/kept/1", "holds <lambda> of tests, which pickle cannot copy."),
        (threading.Lock(), "inner/kept", "holds a lock, which pickle cannot copy."),
    ],
    ids=["custom-jvp", "jitted", "lambda", "partial", "tuple", "lock"],
)
def test_attributes_that_do_not_pickle_are_named(what, path, says):
    """The attribute at fault is named, and not the module: JAX's own functions are among those that do not pickle."""
    model = nnx.Dict(inner=nnx.Dict(kept=nnx.static(what)))
    found = [(finding.path, finding.message) for finding in pickled(model)]
    assert found == [(path, says)]


@pytest.mark.parametrize(
    "what", [jax.nn.gelu, nnx.softmax, functools.partial(jnp.mean, axis=0)], ids=["gelu", "softmax", "partial"]
)
def test_functions_that_pickle_are_no_finding(what):
    """Plain functions of JAX pickle, and so does a partial of one that does."""
    assert [f.path for f in pickled(nnx.Dict(kept=nnx.static(what)))] == ([] if pickles(what) else ["kept"])


def test_a_local_class_does_not_pickle():
    """A class within a function is named, where the attributes are right."""
    (finding,) = pickled(_to_module(3)())
    assert (finding.path, finding.is_warning) == ("", True)
    assert finding.message.startswith("is of the class _to_module.<locals>.Holds")


def pickles(what):
    try:
        pickle.dumps(what)
    except Exception:
        return False
    return True


def pickled(model):
    """Returns what the check of copies says of pickling a model."""
    program = Program("", lambda: model, lambda model, batch: (), ((), ()))
    reference = called(program, model)
    found = [f for f in copies(program, reference) if isinstance(f, Finding)]
    return [finding for finding in found if finding.where == ("pickle",)]


@pytest.mark.filterwarnings("error")
def test_a_model_without_state_passes(caplog):
    """A model without state passes, although Orbax refuses to save it."""

    class Square(nnx.Module):
        def __call__(self, x):
            return x**2

    report = tallax.statecheck(Square, X)
    assert report.passed, str(report)
    assert not caplog.records  # Orbax would log from a thread that nobody waits for


# --- widths -----------------------------------------------------------------------------------------------------------


class Words(nnx.Module):
    """A wide count by hand: the high word takes up what the low one can't hold."""

    def __init__(self):
        self.words = nnx.Variable(jnp.zeros(2, jnp.uint32))

    def __call__(self, x):
        low = self.words[0] + jnp.uint32(x.shape[0])
        self.words[...] = jnp.stack([low, self.words[1] + (low < x.shape[0]).astype(jnp.uint32)])
        return x


class Capped(nnx.Module):
    """A count that stops at a capacity, a position in a ring, and a count of everything."""

    def __init__(self):
        self.filled = nnx.Variable(jnp.zeros((), jnp.int32))
        self.position = nnx.Variable(jnp.zeros((), jnp.int32))
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.filled[...] = jnp.minimum(self.filled[...] + x.shape[0], 1000)
        self.position[...] = (self.position[...] + x.shape[0]) % 64
        self.seen[...] += x.shape[0]
        return x


def test_wide_and_bounded_counts_are_no_narrow_ones():
    """A pair of words, a capped count and a ring's position pass; the narrow count next to them fails."""
    assert tallax.statecheck(Words, X).passed
    report = tallax.statecheck(Capped, X)
    assert [(finding.rule, finding.path) for finding in report.failures] == [("narrow-counter", "seen")]
    assert (report.failures[0].got, report.failures[0].expected) == (str(2**31 - 1 + 18 - 2**32), str(2**31 - 1 + 18))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint32, jnp.int16, jnp.int8])
@pytest.mark.parametrize("counts", ["calls", "examples"])
def test_every_width_has_its_edge(dtype, counts):
    """Each dtype's count fails at its edge; 32-bit integers only warn while they do not grow with the batch."""

    class Count(nnx.Module):
        def __init__(self):
            self.n = nnx.Variable(jnp.zeros((), dtype))

        def __call__(self, x):
            self.n[...] += jnp.asarray(3 if counts == "calls" else len(x), dtype)
            return x

    report = tallax.statecheck(Count, X)
    found = [finding for finding in report.findings if finding.rule == "narrow-counter"]
    assert [finding.path for finding in found] == ["n"]
    assert found[0].is_warning == (counts == "calls" and dtype in (jnp.int32, jnp.uint32))


def _widths_of(make):
    with GRAPH.active():
        program = program_of(make, (X,), 3, None)
        return [found for found in widths(program, reference_of(program)) if isinstance(found, Finding)]


def _adding(start, change, dtype=jnp.float32, shape=()):
    class Adds(nnx.Module):
        def __init__(self):
            self.n = nnx.BatchStat(jnp.full(shape, start, dtype))

        def __call__(self, x):
            self.n[...] = jnp.asarray(change(self.n[...], x), dtype)
            return x

    return Adds


@pytest.mark.parametrize(
    ("make", "edge"),
    [
        (_adding(1e-4, lambda n, x: n + len(x)), "2**24"),
        (_adding(0.5, lambda n, x: n + 1), "2**24"),
        (_adding(1000.3, lambda n, x: n + 1), "2**24"),
        (_adding(1e-4, lambda n, x: n + (x > 0).sum(0), shape=4), "2**24"),
        (_adding(1e-4, lambda n, x: n + len(x), jnp.float16), "2**11"),
        (_adding(0.5, lambda n, x: n + 1, jnp.bfloat16), "2**8"),
        (_adding(1e-3, lambda n, x: n + len(x), jnp.bfloat16), "2**8"),
        (_adding(0.0, lambda n, x: n + 0.1 * len(x)), "adds up in float32, which loses increments of 0.6 "),
        (_adding(0.0, lambda n, x: n + 0.1 * len(x), jnp.float16), "adds up in float16"),
        (_adding(0.0, lambda n, x: n + 1 / 3), "adds up in float32"),
        (_adding(1e-8, lambda n, x: n + jnp.full(len(x), 0.3).sum()), "adds up in float32"),
    ],
)
def test_counts_are_found_by_their_increments(make, edge):
    """A count is recognized from any start and with any increment, until increments are lost."""
    (found,) = _widths_of(make)
    assert (found.rule, found.path, found.is_warning) == ("narrow-counter", "n", False)
    assert edge in found.message


@pytest.mark.parametrize(
    "change", [lambda n, x: n + jnp.abs(x).sum(), lambda n, x: n + (x**2).mean(0)], ids=["weights", "squares"]
)
def test_sums_of_data_are_warnings(change):
    """Sums of weights or squares lose small parts of a large total, which is only a warning."""
    shape = jax.eval_shape(change, jnp.zeros(()), X).shape
    (found,) = _widths_of(_adding(1e-4, change, shape=shape))
    assert (found.rule, found.is_warning) == ("narrow-counter", True)


@pytest.mark.parametrize(
    "change",
    [
        lambda n, x: 0.9 * n + 0.1,
        lambda n, x: 0.99999 * n + 1e-5,
        lambda n, x: n + 1e-3 * (10.0 - n),
        lambda n, x: 1 - (1 - n) * 0.9,
        lambda n, x: 0.999 * n + 1,
        lambda n, x: jnp.minimum(n + 0.1, 1.0),
        lambda n, x: jnp.minimum(n + 0.3, 1e6),
        lambda n, x: jnp.minimum(n + 1, 1e6),
        lambda n, x: (n + 0.1) % 1.0,
        lambda n, x: 1.1 * n + 0.1,
        lambda n, x: 2 * n + 1,
        lambda n, x: jnp.maximum(n, jnp.abs(x).max() * (1 + n)),
    ],
    ids=[
        "average", "slow-average", "running-mean", "correction", "decayed-count", "warmup", "capped", "capped-count",
        "phase", "growth", "doubling", "peak",
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", [0.0, 1e-4])
def test_averages_and_bounded_values_are_no_counts(change, start):
    """A value that moves by a different amount from a different start is not a count."""
    assert _widths_of(_adding(start, change)) == []


# --- ended early, and progress ----------------------------------------------------------------------------------------


def _interrupt_at(name):
    def notify(check):
        if check == name:
            raise KeyboardInterrupt

    return notify


def test_an_interrupt_carries_the_partial_report():
    """Ctrl-C ends the check, and the exception has the report so far, which Python prints."""
    with pytest.raises(KeyboardInterrupt) as caught:
        tallax.statecheck(Rebinds, X, on_progress=_interrupt_at("jit graph"))
    (report,) = caught.value.args
    assert report.incomplete == "interrupted at: jit graph"
    assert [(finding.rule, finding.path) for finding in report.failures] == [("replaced-variable", "step")]
    assert "Rebinds: incomplete, interrupted at: jit graph; 1 failed; " in str(caught.value)
    assert (nnx.Variable.set_value.__qualname__, report.passed) == ("Variable.set_value", False)


def test_an_interrupt_of_a_right_model_is_no_pass():
    """An incomplete report does not pass."""
    with pytest.raises(KeyboardInterrupt) as caught:
        tallax.statecheck(Counted, X, on_progress=_interrupt_at("attributes"))
    (report,) = caught.value.args
    assert (report.failures, report.passed) == ((), False)
    assert "no failure so far" in report.summary()
    with pytest.raises(tallax.CheckFailedError, match="interrupted at: attributes"):
        report.raise_on_failure()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_out_of_time_gives_the_partial_report():
    """After the time limit no check begins, and the report is incomplete."""
    report = tallax.statecheck(Counted, X, limit_seconds=0)
    assert report.incomplete == "out of time at: reproducible"
    assert [cell.check for cell in report.cells] == ["reproducible"]
    assert not report.passed


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line_on_a_terminal(monkeypatch):
    """The line names the check that runs, and is gone at the end."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_line() as notify:
        notify("scan tree")
    assert stream.getvalue() == "\r\x1b[2Kscan tree (0 s)\r\x1b[2K"


def test_progress_is_silent_unless_asked(capfd):
    """If stderr is not a terminal nothing is shown; `progress=True` prints a line for each check."""
    tallax.statecheck(Counted, X, limit_seconds=0)
    assert capfd.readouterr().err == ""
    tallax.statecheck(Counted, X, limit_seconds=0, progress=True)
    assert capfd.readouterr().err == "check: plain calls\ncheck: reproducible\ncheck: reproducible\n"


def test_progress_can_be_refused_on_a_terminal(monkeypatch):
    """`progress=False` shows nothing anywhere."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    tallax.statecheck(Counted, X, limit_seconds=0, progress=False)
    assert stream.getvalue() == ""


# --- what can't be checked --------------------------------------------------------------------------------------------


class Takes(nnx.Module):
    def __init__(self, size, rngs):
        self.layer = nnx.Linear(size, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "inputs", "says"),
    [
        (3, (), "requires a factory of modules"),
        (lambda: 3, (), "must return a Flax NNX module"),
        (Takes, (X,), "required arguments size"),
        (lambda rngs: Takes(4, rngs), (), "a plain call of the model raises"),
        (lambda: nnx.metrics.Average("loss"), (X,), "the model has no __call__"),
        (Counted, (nnx.Rngs(0),), "inputs must be arrays and plain values"),
    ],
)
def test_factories_that_cannot_be_checked_raise(make, inputs, says):
    """A program that cannot be checked raises StatecheckError with a fix."""
    with pytest.raises(tallax.StatecheckError, match=says) as caught:
        tallax.statecheck(make, *inputs)
    assert "fix:" in str(caught.value)


def test_one_call_is_too_few():
    """Drift takes two calls to show."""
    with pytest.raises(ValueError, match="at least two calls are needed"):
        tallax.statecheck(Counted, X, calls=1)


# --- pytest -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_fixture_fails_a_test(tmp_path):
    """The fixture `statecheck` is there without an import, and fails a test with the finding."""
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            """
            import os
            import sys

            assert "jax" not in sys.modules  # the plugin leaves JAX's settings to conftest.py
            import jax.numpy as jnp
            from flax import nnx


            class Wrong(nnx.Module):
                def __init__(self):
                    self.step = nnx.Variable(jnp.zeros((), jnp.int32))

                def __call__(self, x):
                    self.step = self.step + 1
                    return x


            def test_right(statecheck):
                assert statecheck(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.ones((3, 2))).passed


            def test_wrong(statecheck):
                statecheck(Wrong, jnp.ones(2))


            def test_limit(statecheck):
                statecheck(Wrong, jnp.ones(2), limit_seconds=0)


            def test_interrupted(statecheck):
                def stop(check):
                    if check == "jit graph":
                        raise KeyboardInterrupt

                statecheck(Wrong, jnp.ones(2), on_progress=stop)
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:sybil", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert "2 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "Wrong: incomplete, out of time at: reproducible" in ran.stdout
    assert "KeyboardInterrupt" in ran.stdout
    assert "Wrong: incomplete, interrupted at: jit graph; 1 failed" in ran.stdout
    assert "CheckFailedError" in ran.stdout
    assert "step: was a Variable" in ran.stdout
    assert "raise_on_failure" not in ran.stdout  # the traceback ends in the test
