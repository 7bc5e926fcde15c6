# SPDX-License-Identifier: Apache-2.0
"""`tallax.inject_schedules` trains as optax does, to the bit, with every optimizer of optax that takes a schedule."""

import contextlib
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import tallax

# The warnings are optax's own.
pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.filterwarnings("ignore")]

RATE = optax.warmup_cosine_decay_schedule(0.01, 0.1, 3, 20)
# What some optimizers require beside a learning rate, by the argument's name.
REQUIRED = {
    "base_optimizer": lambda: optax.sgd(0.1),
    "b1": lambda: 0.9,
    "l2_norm_clip": lambda: 1.0,
    "noise_multiplier": lambda: 0.5,
    "seed": lambda: 0,
    "key": lambda: jax.random.key(0),
}


def _optimizers():
    """Yields the optimizers of optax's public surface whose learning rate may be a schedule, by name."""
    for module in (optax, optax.contrib):
        for name, factory in sorted(inspect.getmembers(module, inspect.isfunction)):
            parameters = inspect.signature(factory).parameters
            if not name.startswith("_") and "learning_rate" in parameters:
                if "Callable" in str(parameters["learning_rate"].annotation):
                    yield f"{module.__name__}.{name}", factory


OPTIMIZERS = dict(_optimizers())


def _required(factory):
    parameters = inspect.signature(factory).parameters.values()
    named = (p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return {name: REQUIRED[name]() for name in named if name != "learning_rate"}


def _pair(factory, **arguments):
    """Returns an optimizer of optax, and the same by tallax."""
    arguments = _required(factory) | arguments
    return factory(learning_rate=RATE, **arguments), tallax.inject_schedules(factory, learning_rate=RATE, **arguments)


def _params(name=""):
    other = jnp.float32 if "sophia" in name else jnp.bfloat16  # optax's own does not take two dtypes
    return {
        "w": jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4),
        "b": jnp.linspace(0.5, 1, 4, dtype=other),
    }


def _loss(params):
    return sum(jnp.sum(jnp.sin(x.astype(jnp.float32)) ** 2) for x in jax.tree.leaves(params))


def _extras(name, value, grads):
    """Returns the gradients, and what some optimizers' updates take beside them."""
    if "dpsgd" in name:  # takes those of each example
        grads = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads)
    extras = {"value": value, "grad": grads, "value_fn": _loss}
    return grads, extras if "lbfgs" in name else extras | {"loss": value, "obj_fn": _loss}


def _trained_by_jax(name, transformation):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(_loss)(params)
        grads, extras = _extras(name, value, grads)
        updates, state = optax.with_extra_args_support(transformation).update(grads, state, params, **extras)
        return optax.apply_updates(params, updates), state

    params = _params(name)
    state = transformation.init(params)
    for _ in range(5):
        params, state = step(params, state)
    return params, state


def _trained_by_nnx(compiled, name, transformation):
    model = nnx.Dict({key: nnx.Param(value) for key, value in _params(name).items()})
    optimizer = nnx.Optimizer(model, optax.with_extra_args_support(transformation), wrt=nnx.Param)

    def step(model, optimizer):
        value, grads = tallax.value_and_grad(lambda model: _loss(nnx.as_pure(nnx.state(model, nnx.Param))))(model)
        grads, extras = _extras(name, value, grads)
        extras["grad"] = nnx.as_pure(grads)
        optimizer.update(model, grads, **extras)
        return value

    with compiled(step, model, optimizer) as run:
        for _ in range(5):
            run()
    return nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))


@contextlib.contextmanager
def _nnx_jit(step, *objects):
    yield functools.partial(nnx.jit(step), *objects)


TRAINED = {
    "jax.jit": _trained_by_jax,
    "nnx.jit": functools.partial(_trained_by_nnx, _nnx_jit),
    "compile_step": functools.partial(_trained_by_nnx, tallax.compile_step),
}


def _assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (a, b)


def test_optax_has_optimizers():
    """The enumeration finds what it should, and optax's annotations are those that `scheduled` goes by."""
    assert {"optax.adam", "optax.adamw", "optax.sgd", "optax.lion", "optax.contrib.muon"} <= set(OPTIMIZERS)
    assert len(OPTIMIZERS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_as_optax_does(name, trained):
    """Parameters of two dtypes and the optimizer's own state are equal to the bit, and no constant is in the state."""
    theirs, ours = _pair(OPTIMIZERS[name])
    expected, expected_state = TRAINED[trained](name, theirs)
    params, state = TRAINED[trained](name, ours)
    _assert_equal(params, expected)
    _assert_equal(state.inner_state, expected_state)
    assert list(state.hyperparams) == ["learning_rate"] == list(state.hyperparams_states)


def test_a_step_takes_the_place_of_the_count():
    """With step= every schedule follows it; optax's own count goes on, and the state keeps its form."""
    ours = tallax.inject_schedules(optax.sgd, learning_rate=RATE, momentum=optax.linear_schedule(0.5, 1.0, 10))
    params = _params()
    state = ours.init(params)
    for step in (7, 3, 2**40, tallax.Counter(5)):
        _, state = ours.update(params, state, params, step=step)
        at = min(int(step), 2**31 - 1)
        assert float(state.hyperparams["learning_rate"]) == float(RATE(jnp.int32(at)))
        assert float(state.hyperparams["momentum"]) == float(optax.linear_schedule(0.5, 1.0, 10)(jnp.int32(at)))
    assert int(state.inner_state[1].count) == 4


def _plain(learning_rate, weight_decay=0.0):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale(-learning_rate))


def _quoted(learning_rate: "NoSuchType | Schedule", **others: float):  # noqa: F821
    return optax.adamw(learning_rate, **others)


def test_number_arguments_stay_numbers():
    """A function without annotations gets each schedule's value, in the dtype of the parameters."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    ours = tallax.inject_schedules(_plain, RATE, weight_decay=lambda count: 0.1 * count)
    state = ours.init(params)
    for count in range(3):
        updates, state = ours.update(params, state, params)
        reference = _plain(jnp.bfloat16(RATE(jnp.int32(count))), jnp.bfloat16(0.1 * count))
        _assert_equal(updates, reference.update(params, reference.init(params), params)[0])
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_schedules_among_keyword_arguments_are_found():
    """Annotations that cannot be evaluated, and arguments that go to `**others`, change nothing."""
    decay = optax.linear_schedule(0.1, 0.2, 5)
    ours = tallax.inject_schedules(_quoted, RATE, weight_decay=decay, b1=0.8)
    assert set(ours.init(_params()).hyperparams) == {"learning_rate", "weight_decay"}


def test_callables_that_are_no_schedules_are_passed_on():
    """Types, and what the factory's annotations say is no number, are no schedules; others are named."""
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    given = {"weight_decay": 0.5, "mask": mask, "mu_dtype": jnp.bfloat16, "b1": 0.8, "nesterov": True}
    params = _params()
    for static in ((), "mask", ("mask", "mu_dtype")):
        ours, theirs = (
            tallax.inject_schedules(optax.adamw, RATE, static_args=static, **given),
            optax.adamw(RATE, **given),
        )
        _assert_equal(ours.init(params).inner_state, theirs.init(params))
        _assert_equal(
            ours.update(params, ours.init(params), params)[0], theirs.update(params, theirs.init(params), params)[0]
        )
    assert tallax.inject_schedules(optax.adamw, 0.1, **given).init(params).hyperparams == {}


def test_without_a_schedule_nothing_is_added():
    """With constants alone the state has the leaves of optax's own."""
    params = _params()
    ours, theirs = tallax.inject_schedules(optax.adam, 0.1, b1=0.8), optax.adam(0.1, b1=0.8)
    _assert_equal(jax.tree.leaves(ours.init(params)), jax.tree.leaves(theirs.init(params)))


def test_a_schedule_always_gets_an_int32_array():
    """In init, in an update with and without step=, and whoever counts."""
    seen = []

    def rate(count):
        seen.append((isinstance(count, jax.Array), count.dtype, count.shape))
        return 0.1 * count.astype(jnp.float32)

    for ours in (
        tallax.inject_schedules(optax.sgd, rate),
        tallax.inject_schedules(_plain, rate),
        tallax.clip_by_global_norm(rate),
    ):
        state = ours.init(_params())
        for extras in ({}, {"step": 3}, {"step": np.int64(3)}, {"step": tallax.Counter(3)}):
            _, state = ours.update(_params(), state, _params(), **extras)
    assert set(seen) == {(True, jnp.dtype(jnp.int32), ())}
