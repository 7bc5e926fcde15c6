# SPDX-License-Identifier: Apache-2.0
"""The Logger: when it logs, what it takes, and what becomes of it when sinks are slow, fail, or hang."""

import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.logging import _writer
from tallax.statistics import Activity, Ema, Extrema, Histogram, LogHistogram, Moments, Rate


class Kept:
    """A sink that keeps the records; it may be slow, stuck or broken."""

    def __init__(self, *, fails=(), gate=None):
        self.records, self.closed, self.fails, self.gate = [], 0, set(fails), gate
        self.threads = set()

    def write(self, record):
        self.threads.add(threading.current_thread())
        if self.gate is not None:
            assert self.gate.wait(30)
        if record.step in self.fails:
            raise OSError(28, "No space left on device")
        self.records.append(record)

    def close(self):
        self.closed += 1

    def __repr__(self):
        return "Kept()"

    @property
    def steps(self):
        return [record.step for record in self.records]


def run(log, steps, *, start=0):
    for step in range(start + 1, start + steps + 1):
        log(step=step, loss=1 / step)


def counting(start=0):
    return nnx.Dict(step=tallax.Counter(start))


# --- when -----------------------------------------------------------------------------------------------------------


def test_the_first_step_and_the_multiples_are_logged():
    """The first call, and the steps that `every` divides; the sink is closed at the end of the block."""
    sink = Kept()
    with tallax.Logger(sink, every=10) as log:
        run(log, 35)
    assert sink.steps == [1, 10, 20, 30]
    assert [record.scalars["loss"] for record in sink.records] == [1, 0.1, 1 / 20, 1 / 30]
    assert sink.closed == 1


@pytest.mark.parametrize("start", [0, 5, 9, 10, 2**40 + 3])
def test_the_step_is_that_of_the_models_counter(start):
    """Without step=, a model's step counter does, from wherever the run goes on; its multiples are logged."""
    model, sink = counting(start), Kept()
    with tallax.Logger(sink, every=10) as log:
        for _ in range(25):
            model.step += 1
            log(model)
    expected = [start + 1] + [step for step in range(start + 2, start + 26) if step % 10 == 0]
    assert sink.steps == expected
    assert [record.scalars["step"] for record in sink.records] == expected


def test_the_step_is_that_of_a_compiled_steps_counter():
    """State that a compiled step owns is read through the step, as of the time of the call."""

    @nnx.jit
    def init(x):
        return x

    model = nnx.Dict(clock=tallax.StepCounter(nnx.Rngs(0)), w=nnx.Param(jnp.ones(2)))

    def train_step(model, x):
        model.clock()
        model.w[...] += x
        return model.w[...].sum()

    sink = Kept()
    with tallax.compile_step(train_step, model) as step, tallax.Logger(sink, every=5) as log:
        for _ in range(12):
            log(step, loss=step(init(jnp.float32(1.0))))
    assert sink.steps == [1, 5, 10]
    assert [record.scalars["loss"] for record in sink.records] == [4.0, 12.0, 22.0]
    assert [record.scalars["clock/step"] for record in sink.records] == [1, 5, 10]


def test_without_a_counter_calls_are_counted():
    """A model without a Counter called step, and no model at all, log by calls."""
    for model in [nnx.Dict(acts=Rate()), nnx.Dict(seen=tallax.Counter(7))]:
        sink = Kept()
        with tallax.Logger(sink, every=2) as log:
            for _ in range(5):
                log(model)
        assert sink.steps == [1, 2, 4]
    sink = Kept()
    with tallax.Logger(sink, every=2) as log:
        for _ in range(3):
            log(loss=1.0)
    assert sink.steps == [1, 2]


def test_the_shortest_path_to_a_step_counts():
    """The step counter with the shortest path is used, unless a name is given."""
    model = nnx.Dict(step=tallax.Counter(10), part=nnx.Dict(step=tallax.Counter(3)))
    own, other = Kept(), Kept()
    with tallax.Logger(own) as log:
        log(model)
    with tallax.Logger(other, step="part/step") as log:
        log(model)
    assert (own.steps, other.steps) == ([10], [3])


def test_a_call_between_two_records_looks_at_nothing():
    """Such a call neither reads the model, nor checks its arguments, nor wakes the thread."""
    sink = Kept()
    with tallax.Logger(sink, every=1000) as log:
        log(counting(1))
        log(object(), loss="nonsense")
    assert sink.steps == [1]


def test_a_call_of_the_other_kind_raises_although_it_is_not_due():
    """Calls with step= and calls without it have steps of their own, so they are not mixed."""
    for first, other in (({"step": 3}, {}), ({}, {"step": 3}), ({}, {"step": 1})):
        sink = Kept()
        with tallax.Logger(sink, every=10) as log:
            for _ in range(2):
                log(x=1, **first)
                with pytest.raises(tallax.InvalidValueError, match="either every call passes step=, or none does"):
                    log(x=1, **other)
        assert sink.steps == [first.get("step", 1)]


def test_calls_from_several_threads():
    """No call is lost or counted twice."""
    sink = Kept()
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with tallax.Logger(sink, every=1) as log:
            threads = [threading.Thread(target=lambda: [log(x=1) for _ in range(500)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(switching)
    assert sink.steps == list(range(1, 2001))


def test_now_logs_whatever_the_step():
    """`now` logs immediately, at the current step, and does not count as a call."""
    model, sink = counting(), Kept()
    with tallax.Logger(sink, every=10) as log:
        for _ in range(12):
            model.step += 1
            log(model)
        log.now(accuracy=0.9)
        log.now(model, final=1)
    assert sink.steps == [1, 10, 12, 12]
    assert dict(sink.records[2].scalars) == {"accuracy": 0.9}
    assert dict(sink.records[3].scalars) == {"step": 12, "final": 1}


def test_now_may_come_first():
    """An evaluation before the first step has the counter's step, and later records are correct."""
    model, sink = counting(40), Kept()
    with tallax.Logger(sink, every=5) as log:
        log.now(model, accuracy=0.1)
        for _ in range(10):
            model.step += 1
            log(model)
    assert sink.steps == [40, 45, 50]


def test_numpy_steps_and_a_device_step():
    """A NumPy int is a step; a jax array, which would have to be waited for, is refused."""
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(step=np.int64(3))
        with pytest.raises(tallax.InvalidTypeError, match="reads the step counter without stopping the device"):
            log(step=jnp.int32(4))
    assert sink.steps == [3]


# --- what -----------------------------------------------------------------------------------------------------------


def test_a_record_has_all_state_by_its_parts():
    """Each field of each statistic, each entry of a small array, a histogram with its own bins, exact counts."""
    model = nnx.Dict(
        step=tallax.Counter(2**60 + 1),
        scale=tallax.Buffer(jnp.float32(0.25)),
        temperature=tallax.ScheduledValue(optax.constant_schedule(2.0)),
        load=tallax.Counter(shape=2),
        fired=Rate(),
        acts=Histogram(0.0, 1.0, bins=4),
        range=Extrema(),
        units=Activity(3),
        loss=Ema(0.9),
        stats=Moments(),
    )
    model.load.set(np.array([2**40, 1]))
    x = jnp.array([0.1, 0.6, 0.7, jnp.nan, 2.0])
    model.fired.update(x > 0.5)
    for name in ("acts", "range", "loss", "stats"):
        model[name].update(x)
    model.units.update(jnp.array([True, False, True]))
    model.temperature(0)
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(model)
    (record,) = sink.records
    result = tallax.collect(model).result()
    assert record.step == record.scalars["step"] == 2**60 + 1
    assert record.scalars["scale"] == 0.25
    assert record.scalars["temperature"] == 2.0
    assert [record.scalars[f"load/{k}"] for k in range(2)] == [2**40, 1]
    for name, fields in {
        "fired": ("fired", "total", "rate"),
        "range": ("min", "max", "count", "nan"),
        "loss": ("value", "weight", "nonfinite"),
        "stats": ("count", "mean", "variance", "nonfinite"),
    }.items():
        assert [record.scalars[f"{name}/{field}"] for field in fields] == [getattr(result[name], f) for f in fields]
    assert record.scalars["units/dead"] == 1
    assert [record.scalars[f"units/rates/{k}"] for k in range(3)] == [1.0, 0.0, 1.0]
    np.testing.assert_array_equal(record.histograms["acts"].counts, result["acts"].counts)
    np.testing.assert_array_equal(record.histograms["acts"].edges, result["acts"].edges)
    assert {name: record.scalars.get(f"acts/{name}") for name in ("nan", "overflow", "underflow")} == {
        "nan": 1,
        "overflow": 1,
        "underflow": None,
    }
    assert record.histograms["load"] == tallax.sinks.Bins(np.array([-0.5, 0.5, 1.5]), np.array([2**40, 1], np.uint64))
    assert {name: item.kind for name, item in record.state.items()} == {
        entry.name: type(entry.owner or entry.item).__name__ for entry in tallax.collect(model).entries
    }
    assert record.state["load"] == tallax.sinks.StateInfo("Counter", (2,), "uint32", 16, True)


def test_large_arrays_are_summed_up():
    """A large array is logged as extremes, mean and a histogram; for a Counter, the histogram has all counts."""
    values = np.linspace(-1, 1, 101, dtype=np.float32)
    counts = np.arange(64)
    model = nnx.Dict(bias=tallax.Buffer(values), load=tallax.Counter(shape=64))
    model.load.set(counts)
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(model)
    (record,) = sink.records
    assert [record.scalars[f"bias/{what}"] for what in ("min", "max")] == [-1, 1]
    assert record.scalars["bias/mean"] == pytest.approx(0, abs=1e-6)
    assert record.histograms["bias"].total == 101
    assert [record.scalars[f"load/{what}"] for what in ("min", "mean", "max")] == [0, 31.5, 63]
    np.testing.assert_array_equal(record.histograms["load"].counts, counts)


def test_a_log_histogram_keeps_its_counts_and_leaves_out_gaps():
    """The bins of a LogHistogram add up to the number of entries, are few, and are where the values are."""
    model = nnx.Dict(sizes=LogHistogram(0.01))
    x = np.concatenate([10.0 ** np.random.default_rng(0).uniform(-6, 6, 500), [0.0, -3.0, np.inf, np.nan]])
    model.sizes.update(jnp.asarray(x, jnp.float32))
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(model)
        model.sizes.reset()
        log.now(model)
    first, empty = sink.records
    bins = first.histograms["sizes"]
    assert len(bins.counts) <= 256
    assert bins.total == 502  # all but the infinity and the NaN
    assert bins.edges[0] <= -3 < 0 < 1e-7 < bins.edges[-1] < 2e6
    assert (np.diff(bins.edges) > 0).all()
    assert {what: first.scalars[f"sizes/{what}"] for what in ("count", "zero", "nan", "posinf")} == {
        "count": 503, "zero": 1, "nan": 1, "posinf": 1,
    }  # fmt: skip
    assert first.scalars["sizes/p01"] < first.scalars["sizes/median"] < first.scalars["sizes/p99"]
    assert "sizes" not in empty.histograms
    assert dict(empty.scalars) == {"sizes/count": 0}


def test_scalars_of_any_make():
    """Python's, NumPy's and jax's numbers, of any dtype, arrays of one entry, NaN, exact ints, names with slashes."""
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(
            a=2**70, b=0.1, c=True, d=np.float32(0.5), e=np.array([3]), f=jnp.bfloat16(1.5), g=jnp.array([[7]]),
            h=jnp.array(True), i=np.uint64(2**64 - 1), j=float("nan"), k=jnp.float32(jnp.inf), **{"train/loss": 1},
        )  # fmt: skip
    scalars = dict(sink.records[0].scalars)
    assert np.isnan(scalars.pop("j"))
    assert scalars == {
        "a": 2**70, "b": 0.1, "c": 1, "d": 0.5, "e": 3, "f": 1.5, "g": 7, "h": 1, "i": 2**64 - 1, "k": np.inf,
        "train/loss": 1,
    }  # fmt: skip
    assert {type(value) for name, value in scalars.items() if name in "aceghi"} == {int}


def test_a_scalar_may_be_donated_afterwards():
    """Scalars are copied on the device at the call, so a program may reuse their memory at once."""
    sink = Kept(gate=threading.Event())
    take = jax.jit(lambda x: x + 1, donate_argnums=0)
    with tallax.Logger(sink, every=1) as log:
        loss = jnp.float32(0.0)
        for step in range(1, 6):
            log(step=step, loss=loss)
            loss = take(loss)
        sink.gate.set()
    assert [record.scalars["loss"] for record in sink.records] == [0, 1, 2, 3, 4]


def test_logging_does_not_wait_for_the_device():
    """A logged call returns while the program that computes its values is still running."""

    def train_step(model):
        model.step += 1
        x = jnp.ones((1500, 1500)) * model.scale[...]
        for _ in range(4):  # some 0.1 s each
            x = x @ x / 1500
        model.scale[...] = x[0, 0]
        return x[0, 0]

    model, sink = nnx.Dict(step=tallax.Counter(), scale=tallax.Buffer(jnp.float32(1.0))), Kept()
    step = tallax.compile_step(train_step, model)
    step()
    jax.block_until_ready(step())
    with tallax.Logger(sink, every=1) as log:
        log(step, loss=step())  # waits for this step: it reads where the run stands
        loss = step()
        log(step, loss=loss)
        assert not loss.is_ready()
    assert sink.steps == [3, 4]
    assert all(record.scalars["scale"] == record.scalars["loss"] for record in sink.records)


def test_a_reading_is_resolved_beside_the_loop(monkeypatch):
    """The Logger's thread waits for the values, not the loop's."""
    asked = []

    def decode(copies):
        asked.append(threading.current_thread())
        return {"x": float(copies[0])}, []

    sink, step = Kept(), tallax.compile_step(lambda model: None, counting())
    monkeypatch.setattr(step, "collect", lambda: tallax.Reading((), [jnp.float32(2.0)], decode))
    with tallax.Logger(sink, every=1) as log:
        for number in range(3):
            log(step, step=number)
    assert [record.scalars["x"] for record in sink.records] == [2.0] * 3
    assert threading.main_thread() not in asked
    assert set(asked) == sink.threads


@pytest.mark.parametrize("sink", ["Jsonl", "Parquet", "TensorBoard", None])
def test_an_address_of_a_store_elsewhere(sink, monkeypatch, tmp_path):
    """It is refused at once: a folder called gs: would be made here, and vanish with the machine."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tallax.InvalidValueError, match="can only write to a folder on this machine"):
        _ = tallax.Logger("gs://bucket/run") if sink is None else getattr(tallax.sinks, sink)("gs://bucket/run")


def test_several_objects():
    """A compiled step and modules are logged together; equal names get a prefix or raise."""
    held, beside = counting(3), nnx.Dict(ema=tallax.Buffer(jnp.float32(1.0)))
    step = tallax.compile_step(lambda model: model.step.increment(), held)
    step()
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(step, beside)
        with pytest.raises(tallax.InvalidValueError, match="two values have this name"):
            log.now(step, counting(1))
    assert dict(sink.records[0].scalars) == {"step": 4, "ema": 1.0}


# --- when things go wrong -------------------------------------------------------------------------------------------


def test_a_failing_sink_is_named_and_the_others_have_everything():
    """The next call raises, with the sink, the step and the cause; nothing that was logged is lost elsewhere."""
    broken, whole = Kept(fails={20}), Kept()
    with tallax.Logger(broken, whole, every=10) as log:
        run(log, 20)
        while not log._writer._failures:  # the sink is beside the loop: wait for it to have failed
            time.sleep(0.001)
        with pytest.raises(tallax.SinkError) as caught:
            log(step=21, loss=1.0)
        assert str(caught.value) == (
            "Kept(): failed in writing step 20.\n"
            "  got:  OSError: [Errno 28] No space left on device\n"
            "  fix:  fix the cause in the error; other sinks have their records, and a loop that catches this continues"
        )
        assert isinstance(caught.value.__cause__, OSError)
        run(log, 9, start=21)
    assert whole.steps == [1, 10, 20, 30]
    assert broken.steps == [1, 10, 30]


def test_the_call_that_raises_is_logged_all_the_same():
    """A call that raises an earlier failure has logged its own values."""
    broken = Kept(fails={1})
    log = tallax.Logger(broken, every=10)
    log(step=1)
    while not log._writer._failures:
        time.sleep(0.001)
    with pytest.raises(tallax.SinkError):
        log(step=10)
    log.close()
    assert broken.steps == [10]


def test_several_failures_are_all_reported():
    """All unreported failures are in one error, at the latest on closing."""
    with pytest.raises(tallax.SinkError) as caught, tallax.Logger(Kept(fails={1}), Kept(fails={1}), every=10) as log:
        log(step=1)
    assert str(caught.value).count("writing step 1: OSError: [Errno 28]") == 2
    assert "failed, 2 times in all." in str(caught.value)


def test_an_error_in_the_loop_comes_first():
    """Records before an error in the loop are written, and the error has a note about a failed sink."""
    sink = Kept(fails={1})
    with pytest.raises(ZeroDivisionError) as caught, tallax.Logger(sink, every=10) as log:  # noqa: PT012
        run(log, 10)
        _ = 1 / 0
    assert sink.steps == [10]
    assert sink.closed == 1
    assert "failed in writing step 1" in caught.value.__notes__[0]


def test_a_sink_that_fails_to_close_is_reported():
    """Closing reports it, after the other sinks are closed."""

    class Stuck(Kept):
        def close(self):
            raise ValueError("not today")

    whole = Kept()
    log = tallax.Logger(Stuck(), whole)
    log(step=1)
    with pytest.raises(tallax.SinkError, match=r"failed in closing\.\n  got:  ValueError: not today"):
        log.close()
    assert whole.closed == 1


def test_a_slow_sink_is_waited_for():
    """With a full queue the loop waits, and every record arrives, in order."""
    sink = Kept(gate=threading.Event())
    threading.Timer(0.2, sink.gate.set).start()
    with tallax.Logger(sink, every=1, capacity=2) as log:
        run(log, 50)
    assert sink.steps == list(range(1, 51))


def test_a_slow_sink_may_drop_records_which_are_counted():
    """With overflow="drop" the loop never waits, and the last record has the number of dropped records."""
    sink = Kept(gate=threading.Event())
    with tallax.Logger(sink, every=1, capacity=2, overflow="drop") as log:
        run(log, 50)  # the sink is stuck all the while
        sink.gate.set()
    dropped = [record.scalars["logger/dropped_records"] for record in sink.records]
    assert dropped[-1] + len(sink.steps) == 50
    assert len(sink.steps) in (2, 3)  # two in the queue and, if it was awake, one in the thread


def test_a_hanging_sink_can_be_interrupted():
    """Ctrl-C while closing waits for a stuck sink gives up, and reports the number of unwritten records."""
    program = """
import os, signal, threading, time
from tallax import Logger  # imported before the clock runs

class Stuck:
    def write(self, record):
        time.sleep(60)
    def close(self):
        pass

threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    with Logger(Stuck(), every=1) as log:
        for step in range(5):
            log(step=step)
except KeyboardInterrupt as error:
    print(error.__notes__)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "['tallax.Logger gave up: 5 records are not written.']\n", result.stderr


def test_ctrl_c_in_the_loop_flushes():
    """Records captured before Ctrl-C are written."""
    sink = Kept(gate=threading.Event())
    threading.Timer(0.2, sink.gate.set).start()
    with pytest.raises(KeyboardInterrupt), tallax.Logger(sink, every=1) as log:  # noqa: PT012
        run(log, 5)
        raise KeyboardInterrupt
    assert sink.steps == [1, 2, 3, 4, 5]


def test_ctrl_c_while_the_loop_waits_for_a_sink():
    """The record in hand, which found no place in the queue yet, is written as well."""
    sink = Kept(gate=threading.Event())
    threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), tallax.Logger(sink, every=1, capacity=1) as log:  # noqa: PT012
        try:
            run(log, 50)  # stuck at the third
        finally:
            sink.gate.set()
    assert sink.steps == [1, 2, 3]


def test_flush_returns_while_the_thread_is_idle(monkeypatch):
    """Between two writes the thread rests; flush, a queue that fills up, and closing call it."""
    monkeypatch.setattr(_writer, "_REST", 1e6)
    sink = Kept()
    log = tallax.Logger(sink, every=1, capacity=4)
    run(log, 1)
    log.flush()
    run(log, 1, start=1)
    assert sink.steps == [1]
    log.flush()
    assert sink.steps == [1, 2]
    run(log, 20, start=2)
    log.close()
    assert sink.steps == list(range(1, 23))


def test_descriptions_are_written_again_when_they_change():
    """If the objects change, or a step is compiled again, the records describe the new state."""
    first, second = counting(1), nnx.Dict(step=tallax.Counter(2), fired=Rate())
    steps = [tallax.compile_step(lambda model: model.step.increment(), model) for model in (first, second)]
    sink = Kept()
    with tallax.Logger(sink, every=1) as log:
        for k, step in enumerate([*steps, steps[0], steps[0]]):
            step()
            log(step, step=k)
    assert [sorted(record.state) for record in sink.records] == [["step"], ["fired", "step"], ["step"], ["step"]]
    assert [record.scalars["step"] for record in sink.records] == [2, 3, 3, 4]


def test_a_program_that_forgets_to_close_flushes_when_it_ends(tmp_path):
    """Records that are waiting when the program ends are written."""
    program = f"""
import time, tallax

class Slow(tallax.sinks.Jsonl):
    def write(self, record):
        time.sleep(0.1)
        super().write(record)

log = tallax.Logger(Slow({str(tmp_path)!r}), every=1)
for step in range(1, 6):
    log(step=step)
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    assert tallax.Run(tmp_path).steps == [1, 2, 3, 4, 5]


def test_flush_waits():
    """After flush everything is with the sinks, and they stay open."""
    sink = Kept(gate=threading.Event())
    threading.Timer(0.1, sink.gate.set).start()
    log = tallax.Logger(sink, every=1)
    run(log, 3)
    log.flush()
    assert (sink.steps, sink.closed) == ([1, 2, 3], 0)
    log.close()
    log.close()
    assert sink.closed == 1


def test_a_value_that_the_device_failed_to_compute_is_reported(monkeypatch):
    """A record whose values can't be read is reported, and later ones are written."""

    def decode(copies):
        raise RuntimeError("the device is on fire")

    sink, step = Kept(), tallax.compile_step(lambda model: None, counting())
    monkeypatch.setattr(step, "collect", lambda: tallax.Reading((), [], decode))

    log = tallax.Logger(sink, every=2)
    log(step, step=1)
    with pytest.raises(tallax.SinkError, match=r"what was logged: failed in reading step 1\.\n.*device is on fire"):
        log.flush()
    log(step=2)
    log.close()
    assert sink.steps == [2]


def test_other_processes_read_and_do_not_write(monkeypatch):
    """All processes read, because reading may be a program for all; process 0 writes, or all if requested."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    quiet, asked = Kept(), Kept()
    with tallax.Logger(quiet) as log:
        log(counting(3))
        assert log._clocks.host.now == 3  # it was read
    with tallax.Logger(asked, all_processes=True) as log:
        log(counting(3))
    assert quiet.records == []
    assert [(record.process, record.step) for record in asked.records] == [(1, 3)]


def test_after_closing_a_call_raises():
    """After closing, every call raises, also if no record is due."""
    log = tallax.Logger(Kept(), every=100)
    log(step=1)
    log.close()
    with pytest.raises(tallax.InvalidValueError, match="has been closed"):
        log(step=2)


def test_two_steps_with_state_of_one_name():
    """Two objects with state of the same name raise an error with a fix."""
    models = nnx.Dict(c=tallax.Counter()), nnx.Dict(c=tallax.Counter())
    steps = [tallax.compile_step(lambda model: model.c.increment(1), model) for model in models]
    for step in steps:
        step()
    with (
        tallax.Logger(Kept(), every=1) as log,
        pytest.raises(tallax.InvalidValueError, match="contains both") as caught,
    ):
        log(*steps, step=1)
    assert "scalar" not in str(caught.value)
