# SPDX-License-Identifier: Apache-2.0
"""ScheduledValue values, and the optax transformations that read the model's step."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.schedules import step_value

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def standard_promotion():
    """Optax's own schedules and optimizers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def ramp(count):
    return optax.linear_schedule(5.0, 1.0, 100)(count)


STEPS = {
    "int": 50,
    "numpy": np.int64(50),
    "uint32": jnp.uint32(50),
    "counter": tallax.Counter(50),
    "variable": nnx.Variable(jnp.int32(50)),
    "limbs": jnp.array([50, 0], jnp.uint32),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_anything_that_counts_steps_is_taken(step):
    """Counters, integers, integer arrays and the words from nnx.Optimizer all drive a schedule."""
    assert int(step_value(step)) == 50
    assert step_value(step).dtype == jnp.int32
    assert float(tallax.ScheduledValue(ramp)(step)) == 3.0


def test_a_step_counter_is_taken_whole():
    """A module with a counter named `step` can be passed itself."""
    counter = tallax.StepCounter(nnx.Rngs(0))
    counter.step.set(25)
    assert float(tallax.ScheduledValue(ramp)(counter)) == 4.0


@pytest.mark.parametrize("step", [2**31 + 5, 2**40, tallax.Counter(2**40), jnp.uint32(2**32 - 1)])
def test_steps_beyond_int32_saturate(step):
    """A schedule sees 2**31 - 1 from there on, never a negative number."""
    assert int(step_value(step)) == 2**31 - 1


@pytest.mark.parametrize("step", [0.5, "1", jnp.zeros(3, jnp.int32), jnp.float32(1), True, nnx.Dict(a=1)])
def test_other_objects_than_step_counts_raise(step):
    """Floats, arrays and text are refused with the remedy."""
    with pytest.raises(tallax.InvalidTypeError, match=r"step: (.|\n)*fix:       step=model\.step"):
        step_value(step)


def test_a_scheduled_value_is_kept():
    """The last value stays on the model; a call without a step reads it."""
    temperature = tallax.ScheduledValue(ramp, name="gate temperature")
    assert float(temperature.value) == 5.0
    temperature(75)
    assert float(temperature.value) == float(temperature()) == 2.0
    assert nnx.clone(temperature).value == copy.deepcopy(temperature).value == 2.0


def test_eval_mode_keeps_nothing():
    """In eval mode a call gives the value at its step, and the kept one stays."""
    model = nnx.Dict(t=tallax.ScheduledValue(ramp))
    model.t(50)
    model.eval()
    assert float(nnx.jit(lambda m: m.t(75))(model)) == float(model.t(75)) == 2.0
    assert float(model.t.value) == 3.0


def test_pin_and_release_do_not_compile_again():
    """A pin applies immediately, also in compiled steps; release follows the schedule; there is one trace."""
    model = nnx.Dict(t=tallax.ScheduledValue(ramp), step=tallax.Counter())
    traces = []

    @nnx.jit
    def step(model):
        traces.append(1)
        model.step += 25
        return model.t(model.step)

    assert float(step(model)) == 4.0
    model.t.pin(2.5)
    assert float(model.t.value) == 2.5
    assert float(step(model)) == 2.5
    model.t.release()
    assert float(model.t.value) == 2.5
    assert float(step(model)) == 2.0
    model.t.pin(jnp.float32(7))
    assert float(step(model)) == 7.0
    assert len(traces) == 1


def test_a_pin_from_inside_a_step():
    """A traced number can be pinned too."""
    model = nnx.Dict(t=tallax.ScheduledValue(ramp))
    nnx.jit(lambda m, x: m.t.pin(x))(model, jnp.float32(3.5))
    assert float(model.t(0)) == 3.5


@pytest.mark.parametrize("value", [float("nan"), jnp.zeros(2), [1.0, 2.0]])
def test_impossible_pins_raise(value):
    """A pin is one number."""
    model = nnx.Dict(t=tallax.ScheduledValue(ramp))
    with pytest.raises(tallax.InvalidValueError, match=r"model\.t: can only be pinned to one number"):
        model.t.pin(value)
    assert float(model.t(50)) == 3.0


def test_impossible_schedules_raise():
    """A schedule is a function to a scalar."""
    with pytest.raises(tallax.InvalidTypeError, match="ScheduledValue: requires a schedule"):
        tallax.ScheduledValue(2.0)
    with pytest.raises(tallax.InvalidValueError, match="must return a scalar"):
        tallax.ScheduledValue(lambda count: jnp.ones(2))


SCHEDULES = [
    optax.constant_schedule(2.0),
    optax.cosine_decay_schedule(1.0, 100),
    optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 100),
    optax.exponential_decay(1.0, 10, 0.5),
    optax.piecewise_constant_schedule(1.0, {10: 0.5, 50: 0.1}),
    optax.join_schedules([optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, 50)], [20]),
    optax.polynomial_schedule(1.0, 0.0, 2, 100),
    optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 1.0, "decay_steps": 50, "warmup_steps": 5, "end_value": 0.0}] * 2
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
def test_any_optax_schedule(schedule):
    """Every optax schedule has the same values here as alone, eager and compiled."""
    model = nnx.Dict(t=tallax.ScheduledValue(schedule))
    compiled = nnx.jit(lambda m, step: m.t(step))
    for count in (0, 7, 33, 80, 500):
        expected = np.float32(schedule(count))
        np.testing.assert_allclose(float(model.t(count)), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(float(compiled(model, jnp.int32(count))), expected, rtol=1e-6, atol=1e-6)


# --- clip_by_global_norm ----------------------------------------------------------------------------------------------

GRADS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}  # global norm 13


@pytest.mark.parametrize("max_norm", [1.0, 12.9, 13.0, 13.1, 100.0])
def test_clipping_is_optax_clipping(max_norm):
    """The updates are optax's, to the bit."""
    clip, reference = tallax.clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm)
    updates, state = clip.update(GRADS, clip.init(GRADS))
    expected, _ = reference.update(GRADS, reference.init(GRADS))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), updates, expected))
    counts = tallax.clip_counts(state)
    assert (counts.updates, counts.clipped, counts.nonfinite) == (1, int(max_norm < 13), 0)
    assert counts.max_norm == np.float32(max_norm)


def test_a_scheduled_threshold_follows_the_step_or_its_own_count():
    """With step= the schedule reads it; without, it reads the number of updates before."""
    warmup = optax.linear_schedule(1.0, 11.0, 10)
    clip = tallax.clip_by_global_norm(warmup)
    state = clip.init(GRADS)
    assert tallax.clip_counts(state) == tallax.ClipCounts(0, 0, 0, 0.0, 1.0)
    seen = []
    for _ in range(3):
        _, state = clip.update(GRADS, state)
        seen.append(float(state.max_norm))
    _, state = clip.update(GRADS, state, step=tallax.Counter(10))
    assert [*seen, float(state.max_norm)] == [1.0, 2.0, 3.0, 11.0]
    assert tallax.clip_counts(state).updates == 4


def test_nonfinite_gradients_are_counted():
    """NaN and infinite norms are counted apart; an infinite one is above any threshold."""
    clip = tallax.clip_by_global_norm(1.0)
    state = clip.init(GRADS)
    for bad in (jnp.nan, jnp.inf, 0.1):
        _, state = clip.update({"a": jnp.array([bad, 0.0])}, state)
    assert tallax.clip_counts(state) == tallax.ClipCounts(3, 1, 2, 1 / 3, 1.0)


def test_clip_counts_are_exact():
    """The counts pass 2**32."""
    clip = tallax.clip_by_global_norm(1.0)
    state = clip.init(GRADS)
    full = jnp.array([2**32 - 1, 0], jnp.uint32)
    _, state = jax.jit(clip.update)(GRADS, state._replace(updates=full, clipped=full))
    assert tallax.clip_counts(state).clipped == 2**32


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [(0.0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError), (None, TypeError)],
)
def test_impossible_thresholds_raise(max_norm, error):
    """A threshold is a positive number or a schedule."""
    with pytest.raises(error, match=r"max_norm: (.|\n)*fix:"):
        tallax.clip_by_global_norm(max_norm)


def test_counts_are_not_read_in_a_trace():
    """Inside jit, reading the counts raises with the remedy."""
    clip = tallax.clip_by_global_norm(1.0)
    with pytest.raises(tallax.TracedReadError, match="outside jit"):
        jax.jit(tallax.clip_counts)(clip.init(GRADS))


def test_debugging_nans_is_possible():
    """No value of ours is NaN, so `jax_debug_nans` works with a ScheduledValue on the model."""
    with jax.debug_nans(True):
        model = nnx.Dict(t=tallax.ScheduledValue(ramp))
        assert float(nnx.jit(lambda m: m.t(50))(model)) == 3.0
        model.t.pin(2.0)
        model.t.release()


@pytest.mark.parametrize("state", [(), optax.adam(1e-3).init(GRADS)])
def test_counts_of_other_transformations_raise(state):
    """Reading needs exactly one clip in the state."""
    with pytest.raises(tallax.InvalidValueError, match="0 of them"):
        tallax.clip_counts(state)


TREES = {
    "float32": {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])},
    "bfloat16": {"a": jnp.array([3.0, 4.0], jnp.bfloat16)},
    "bfloat16 at the threshold": {"a": jnp.array([1.0, 0.03], jnp.bfloat16)},
    "float16, large": {"a": jnp.array([3e4, 4e4], jnp.float16)},
    "two dtypes": {"a": jnp.array([3.0, 4.0], jnp.bfloat16), "b": jnp.array([12.0])},
    "empty": {},
    "None": {"a": None, "b": jnp.array([3.0, 4.0])},
    "masked": {"a": optax.MaskedNode(), "b": jnp.array([3.0, 4.0])},
    "complex": {"a": jnp.array([3 + 4j])},
    "zeros": {"a": jnp.zeros(2)},
    "a scalar": jnp.float32(5.0),
    "no entries": {"a": jnp.zeros((0, 3)), "b": jnp.array([3.0])},
    "NaN": {"a": jnp.array([jnp.nan, 1.0])},
    "infinite": {"a": jnp.array([jnp.inf, 1.0])},
    "integers": {"a": jnp.array([3, 4])},
    "NumPy": {"a": np.array([3.0, 4.0], np.float32)},
    "tiny": {"a": jnp.array([1e-38, 1e-38])},
    "huge": {"a": jnp.array([1e30, 1e30])},
}


@pytest.mark.parametrize("promotion", ["standard", "strict"])
@pytest.mark.parametrize("max_norm", [1.0, 1.001, 5])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_any_tree_is_clipped_as_by_optax(tree, max_norm, promotion):
    """Clipping is bit-equal to optax, op by op and compiled; optax's errors are kept."""

    def clipped(library, compiled):
        transformation = library.clip_by_global_norm(max_norm)
        updates, _ = compiled(transformation.update)(tree, transformation.init(tree))
        leaves = jax.tree.leaves(updates)
        return jax.tree.structure(updates), [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in leaves]

    for compiled in (lambda f: f, jax.jit):
        with jax.numpy_dtype_promotion(promotion):
            try:
                expected = clipped(optax, compiled)
            except (TypeError, jax.dtypes.TypePromotionError):  # of integers
                with pytest.raises((TypeError, jax.dtypes.TypePromotionError)):
                    clipped(tallax, compiled)
                continue
            assert clipped(tallax, compiled) == expected


WRAPPED = {
    "MultiSteps": lambda clip: optax.MultiSteps(optax.chain(clip(1.0), optax.sgd(1.0)), 2),
    "masked": lambda clip: optax.masked(clip(1.0), {"a": True}),
    "apply_if_finite": lambda clip: optax.apply_if_finite(clip(1.0), 3),
    "partition": lambda clip: optax.partition({"x": clip(1.0)}, {"a": "x"}),
    "named_chain": lambda clip: optax.named_chain(("c", clip(1.0)), ("s", optax.sgd(1.0))),
    "flatten": lambda clip: optax.flatten(clip(1.0)),
    "inject_hyperparams": lambda clip: optax.inject_hyperparams(clip)(max_norm=1.0),
    "conditionally_transform": lambda clip: optax.conditionally_transform(clip(1.0), lambda count: count % 2 == 0),
    "a NumPy number": lambda clip: clip(np.float64(1.0)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_it_is_wrapped_as_that_of_optax(wrap):
    """By everything in optax that takes a transformation."""
    params, results = {"a": jnp.array([3.0, 4.0])}, []
    for library in (optax, tallax):
        transformation = wrap(library.clip_by_global_norm)
        state, updates = transformation.init(params), []
        for _ in range(4):
            update, state = jax.jit(transformation.update)(params, state, params)
            updates.append(np.asarray(update["a"]).tobytes())
        results.append(updates)
    assert results[0] == results[1]


SCHEDULES = {
    "astype": lambda count: 1.0 + 0.1 * count.astype(jnp.float32),
    "shape": lambda count: jnp.where(count.shape == (), 1.0, 2.0),
    "clip": lambda count: 1.0 * count.clip(0, 10),
    "at": lambda count: 0.5 * count.at[...].add(2),
    "devices": lambda count: 1.0 * (count.dtype == jnp.int32) + 0 * count,
    "Python's if": lambda count: 2.0 if count < 5 else 1.0,
    "NumPy": lambda count: np.cos(np.float32(count)),
}


@pytest.mark.parametrize(
    "step", [None, 3, np.int64(3), jnp.int32(3), tallax.Counter(3)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_scheduled_value_gets_an_int32_array(schedule, step):
    """Every source of a step, also before the first call, is an int32 array."""
    scheduled = tallax.ScheduledValue(schedule)
    value = scheduled(step)
    assert float(value) == np.float32(schedule(jnp.int32(0 if step is None else 3)))
    assert "ScheduledValue(" in repr(scheduled)
    assert float(scheduled.read({"state": np.asarray(scheduled.state)})) == float(value)


# --- scheduled --------------------------------------------------------------------------------------------------------


def test_scheduled_equals_optax_with_the_same_schedule():
    """Without step= the updates are those of the optimizer that was given the schedule."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 20)
    ours, theirs = (
        tallax.inject_schedules(optax.adamw, learning_rate=schedule, weight_decay=0.1),
        optax.adamw(schedule, weight_decay=0.1),
    )
    params = GRADS
    state, reference = ours.init(params), theirs.init(params)
    for _ in range(6):
        updates, state = ours.update(GRADS, state, params)
        expected, reference = theirs.update(GRADS, reference, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(float(schedule(5)))


def test_positional_and_static_arguments():
    """Schedules may be positional, and callables that are not schedules are named in static_args."""
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    ours = tallax.inject_schedules(optax.adamw, lambda count: 0.1, weight_decay=0.5, mask=mask, static_args="mask")
    updates, state = ours.update(GRADS, ours.init(GRADS), GRADS, step=3)
    expected, _ = (theirs := optax.adamw(0.1, weight_decay=0.5, mask=mask)).update(GRADS, theirs.init(GRADS), GRADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    assert set(state.hyperparams) == {"learning_rate"}


@pytest.mark.parametrize("graph", [True, False])
def test_one_counter_is_the_one_truth(graph):
    """Through nnx.Optimizer, learning rate, clip threshold and temperature all follow the model's counter."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(2, 1, rngs=rngs)
            self.step = tallax.Counter()
            self.temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10))

        def __call__(self, x):
            return self.layer(x) / self.temperature(self.step)

    model = Model(nnx.Rngs(0))
    rate, threshold = optax.linear_schedule(0.0, 1.0, 10), optax.linear_schedule(0.1, 1.1, 10)
    transformation = optax.chain(
        tallax.clip_by_global_norm(threshold), tallax.inject_schedules(optax.sgd, learning_rate=rate)
    )
    with nnx.set_graph_mode(graph):
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    traces = []

    @nnx.jit(graph=graph)
    def train_step(model, optimizer, x):
        traces.append(1)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        loss = lambda params, rest: (nnx.merge(graphdef, params, rest)(x) ** 2).mean()  # noqa: E731
        value, grads = nnx.value_and_grad(loss, graph=False)(params, rest)
        optimizer.update(model, grads, step=model.step)
        model.step += 1
        return value

    x = jnp.array([[1.0, 2.0], [-3.0, 1.0]])
    for _ in range(3):
        train_step(model, optimizer, x)
    model.step.set(7)  # a resumed run
    train_step(model, optimizer, x)
    assert len(traces) == 1
    assert int(model.step) == 8
    assert float(model.temperature.value) == pytest.approx(5.0 - 0.4 * 7)
    assert float(nnx.as_pure(optimizer.opt_state)[1].hyperparams["learning_rate"]) == pytest.approx(0.7)
    counts = tallax.clip_counts(optimizer)
    assert counts.updates == 4
    assert counts.max_norm == pytest.approx(0.8)


def test_printing_shows_the_value():
    """The repr is one line with the value, or only the schedule if the value cannot be read."""
    temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10), name="gate")
    assert repr(temperature) == "ScheduledValue('gate', polynomial_schedule): 5"
    temperature(5)
    assert str(temperature) == "ScheduledValue('gate', polynomial_schedule): 3"
    temperature.pin(2.5)
    assert repr(temperature) == "ScheduledValue('gate', polynomial_schedule): 2.5, pinned"
    assert repr(nnx.eval_shape(lambda: tallax.ScheduledValue(ramp))) == "ScheduledValue(ramp)"
    said = []
    nnx.jit(lambda t: said.append(repr(t)))(temperature)
    assert said == ["ScheduledValue('gate', polynomial_schedule)"]
    assert "state=Buffer(" in repr(nnx.Dict(t=temperature))
