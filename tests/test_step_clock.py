# SPDX-License-Identifier: Apache-2.0
"""Calls of a Logger write records at the right steps: in any order of steps, scans, Loggers and resumes."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import tallax

LENGTHS = (1, 2, 3, 7, 12)  # of scans; each is compiled once


class Steps:
    """A sink that keeps the steps of the records, and the counts in them."""

    def __init__(self):
        self.steps, self.records = [], []

    def write(self, record):
        self.steps.append(record.step)
        self.records.append(record)

    def close(self):
        pass


class Oracle:
    """Due are the step of the first call, and then the steps that reach or pass a multiple since the last."""

    def __init__(self, every):
        self.every, self.next, self.due = every, None, []

    def call(self, step):
        if self.next is None or step >= self.next:
            self.due.append(step)
            self.next = (step // self.every + 1) * self.every


def count(model, x):
    model.step += 1
    return x


def counted(n=0):
    return nnx.Dict(step=tallax.Counter(n))


def logged(calls, every, *, start=0, counter=True):
    """Returns the steps of the records of a run with these calls: 1 is a single step, n > 1 a scan."""
    model = counted(start) if counter else nnx.Dict(seen=tallax.Buffer(jnp.float32(0)))

    def train_step(model, x):
        if counter:
            model.step += 1
        return x

    sink = Steps()
    with tallax.compile_step(train_step, model) as step, tallax.Logger(sink, every=every) as log:
        for n in calls:
            step(jnp.zeros(3)) if n == 1 else step.scan(jnp.zeros((n, 3)))
            log(step, loss=jnp.float32(0))
    return sink.steps


@pytest.mark.parametrize(
    ("calls", "every", "due"),
    [
        ([1] * 3 + [50] * 20, 50, [1, *range(53, 1004, 50)]),
        ([100] * 3 + [1] * 200, 100, [100, 200, 300, 400, 500]),
        ([1] * 25, 10, [1, 10, 20]),
        ([7] * 6, 10, [7, 14, 21, 35, 42]),
        ([250, 1, 1], 100, [250]),  # passes several multiples: one record
        ([50, 49, 1, 99, 1], 100, [50, 100, 200]),
        ([2, 3, 2, 3], 1, [2, 5, 7, 10]),
    ],
)
@pytest.mark.parametrize("counter", [True, False])
def test_single_steps_and_scans(calls, every, due, counter):
    """For any order of single steps and scans, exactly the due calls are logged, with or without a counter."""
    assert logged(calls, every, counter=counter) == due


@pytest.mark.parametrize("start", [1234, 1249, 1250, 2**33 - 7, 2**63 + 1])
def test_a_resumed_run_is_logged_at_its_own_multiples(start):
    """After a restart at a counter's value, records are at the multiples of the run, not of this process."""
    due = [start + 1] + [step for step in range(start + 2, start + 131) if step % 50 == 0]
    assert logged([1] * 130, 50, start=start) == due


@pytest.fixture(scope="module")
def run():
    """Two steps of one model, as for batches of two shapes. Their counts go on from example to example."""
    model = counted()
    first, second = (tallax.compile_step(count, model) for _ in range(2))
    yield model, (first, second)
    for step in (first, second):
        step.sync()


operations = st.lists(st.tuples(st.booleans(), st.sampled_from(LENGTHS), st.booleans(), st.booleans()), max_size=25)


@settings(max_examples=150)
@given(st.integers(0, 2**40), operations, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=3))
def test_any_sequence_of_two_steps_and_several_loggers(run, start, sequence, loggers):
    """Whatever order the steps and scans of two compiled steps come in, and whenever Loggers are made: the due records.

    A Logger need not be called after each, once it was given a compiled step; `now` takes nothing from the rest.
    """
    model, steps = run
    for step in steps:
        step.sync()
    model.step.set(start)
    at, made, held = start, [], None
    for number, (which, n, skipped, extra) in enumerate(sequence):
        step = steps[which]
        if held is not None and held is not step:
            held.sync()
        held = step
        step(jnp.zeros(())) if n == 1 else step.scan(jnp.zeros((n,)))
        at += n
        for every, begins in loggers:
            if begins == number:
                sink = Steps()
                made.append((tallax.Logger(sink, every=every), sink, Oracle(every), set()))
        for log, _, oracle, given_steps in made:
            if skipped and step in given_steps:
                continue
            given_steps.add(step)
            log(step, loss=1.0)
            oracle.call(at)
            if extra:
                log.now(step, extra=1.0)
    for log, sink, oracle, _ in made:
        log.close()
        records = [record for record in sink.records if "extra" not in record.scalars]
        assert [record.step for record in records] == oracle.due
        assert all(record.step == record.scalars["step"] for record in sink.records)


@settings(max_examples=100)
@given(st.integers(1, 9), st.lists(st.integers(-30, 40), max_size=40), st.integers(-5, 100))
def test_any_sequence_of_steps_that_calls_say(every, jumps, start):
    """With step=, each record has that step; where the steps jump, one is due; where they go back, that call is."""
    sink, oracle, step = Steps(), Oracle(every), start
    with tallax.Logger(sink, every=every) as log:
        for jump in [0, *jumps]:
            step += jump
            if jump < 0:
                oracle.next = None
            log(step=step, loss=1.0)
            oracle.call(step)
    assert sink.steps == oracle.due


@settings(max_examples=50)
@given(st.integers(1, 9), st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(0, 1000))
def test_any_sequence_of_calls_with_a_model(every, jumps, start):
    """Without a compiled step, calls are counted, starting from the counter; records have the counter's value."""
    model, sink, oracle, labels = counted(start), Steps(), Oracle(every), []
    with tallax.Logger(sink, every=every) as log:
        for call, jump in enumerate(jumps):
            model.step += jump
            log(model)
            before = len(oracle.due)
            oracle.call(start + jumps[0] + call)
            labels += [int(model.step)] * (len(oracle.due) - before)
    assert sink.steps == labels


def test_functional_loops_count_calls():
    """A model that is another object at each call, as with nnx.split and nnx.merge, is still one run."""
    graphdef, state = nnx.split(counted(7))
    sink = Steps()
    with tallax.Logger(sink, every=5) as log:
        for _ in range(12):
            model = nnx.merge(graphdef, state)
            model.step += 1
            log(model)
            graphdef, state = nnx.split(model)
    assert sink.steps == [8, 10, 15]


def test_models_with_counters_of_their_own_have_clocks_of_their_own():
    """Two models that are logged in turn, as in adversarial training, both have their records."""
    steps = [tallax.compile_step(count, counted(start)) for start in (0, 1000)]
    sink = Steps()
    with tallax.Logger(sink, every=10) as log:
        for _ in range(25):
            for step in steps:
                step(jnp.zeros(()))
                log(step)
    assert sink.steps == [1, 1001, 10, 1010, 20, 1020]


def test_of_several_compiled_steps_in_a_call_the_counter_s_own_is_the_clock():
    """Five steps of a critic to one of the generator, whose model counts: the run has the steps of the generator."""
    critic = tallax.compile_step(lambda model, x: x, nnx.Dict(scale=tallax.Buffer(jnp.float32(1))))
    generator = tallax.compile_step(count, counted())
    sink = Steps()
    with tallax.Logger(sink, every=4) as log:
        for _ in range(9):
            critic.scan(jnp.zeros((5,)))
            generator(jnp.zeros(()))
            log(critic, generator)
    assert sink.steps == [1, 4, 8]


def test_a_logger_outlives_a_compiled_step():
    """A step that is compiled again for each epoch continues the run: no record is lost or repeated."""
    for model in (counted(3), nnx.Dict(scale=tallax.Buffer(jnp.float32(1)))):
        start = 3 if "step" in model else 0
        sink, oracle = Steps(), Oracle(10)
        with tallax.Logger(sink, every=10) as log:
            for epoch in range(4):
                with tallax.compile_step(count if start else lambda model, x: x, model) as step:
                    for k in range(7):
                        step(jnp.zeros(()))
                        log(step)
                        oracle.call(start + epoch * 7 + k + 1)
                del step
                gc.collect()
        assert sink.steps == oracle.due


def test_a_counter_that_counts_every_fourth_step():
    """With accumulated gradients, records are due by executed steps, and have the counter's value."""

    def train_step(model, x):
        model.calls += 1
        model.step.count(model.calls[...] % 4 == 0)
        return x

    sink = Steps()
    model = nnx.Dict(step=tallax.Counter(), calls=tallax.Buffer(jnp.int32(0)))
    with tallax.compile_step(train_step, model) as step, tallax.Logger(sink, every=10) as log:
        for _ in range(45):
            step(jnp.zeros(()))
            log(step)
    assert sink.steps == [0, 2, 5, 7, 10]  # at steps 1, 11, 21, 31 and 41: the clock began one behind


def test_a_call_without_a_step_in_between_is_not_due():
    """A compiled step that has not run since is at the same step: nothing is logged twice."""
    step, sink = tallax.compile_step(count, counted()), Steps()
    with tallax.Logger(sink, every=1) as log:
        log(step)  # has not run at all
        for _ in range(3):
            step(jnp.zeros(()))
            log(step)
            log(step)
    assert sink.steps == [0, 1, 2, 3]


def test_records_beside_a_run_have_its_step():
    """A call without state or step= is counted separately, and its record has the run's step."""
    step, sink = tallax.compile_step(count, counted(100)), Steps()
    with tallax.Logger(sink, every=3) as log:
        for k in range(7):
            step(jnp.zeros(()))
            log(step)
            log(epoch=k)
    assert [record.step for record in sink.records if "step" in record.scalars] == [101, 102, 105]
    assert [(record.step, record.scalars["epoch"]) for record in sink.records if "epoch" in record.scalars] == [
        (101, 0), (103, 2), (106, 5),
    ]  # fmt: skip


def test_a_call_that_takes_nothing_stays_due():
    """If a call raises, there is no record, and the next call is due."""
    step, sink = tallax.compile_step(count, counted()), Steps()
    with tallax.Logger(sink, every=10) as log:
        step(jnp.zeros(()))
        with pytest.raises(tallax.InvalidTypeError):
            log(step, object())
        log(step)
        step.scan(jnp.zeros((12,)))
        with pytest.raises(tallax.InvalidTypeError):
            log(step, object())
        step(jnp.zeros(()))
        log(step)
    assert sink.steps == [1, 14]


def test_compiled_steps_know_how_many_they_ran():
    """Calls, scans of any length and keywords count, without waiting; a call that raises does not."""
    step = tallax.compile_step(lambda model, x, y=0.0: model.step.increment(), counted())
    assert step.steps == 0
    step(jnp.zeros(3))
    step.scan(jnp.zeros((5, 3)))
    step.scan(np.zeros((2, 3)), y=jnp.zeros((2, 4)))
    step.scan(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="axis"):
        step.scan(jnp.zeros((2, 3)), y=jnp.zeros(3))
    assert step.steps == int(step.objects[0].step) == 8


def test_only_the_first_call_waits():
    """It reads where the run stands. All further ones, due or not, return while the program runs."""

    def train_step(model):
        model.step += 1
        x = jnp.ones((1500, 1500)) * model.scale[...]
        for _ in range(4):  # some 0.1 s each
            x = x @ x / 1500
        model.scale[...] = x[0, 0]
        return x[0, 0]

    model, sink = nnx.Dict(step=tallax.Counter(), scale=tallax.Buffer(jnp.float32(1.0))), Steps()
    step = tallax.compile_step(train_step, model)
    step()
    jax.block_until_ready(step())
    with tallax.Logger(sink, every=3) as log:
        for number in range(3, 8):
            loss = step()
            log(step, loss=loss)
            assert loss.is_ready() == (number == 3)
            if number == 4:
                jax.block_until_ready(loss)
    assert sink.steps == [3, 6]
