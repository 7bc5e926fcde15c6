# SPDX-License-Identifier: Apache-2.0
"""Gradients that optax.MultiSteps accumulates: what counts micro-steps, and what counts optimizer steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.cases import MODES

pytestmark = pytest.mark.usefixtures("standard_promotion")

EVERY = 4
RATE = optax.linear_schedule(0.0, 1.0, 10)
THRESHOLD = optax.linear_schedule(1.0, 11.0, 10)


@pytest.fixture
def standard_promotion():
    """Optax's own schedules and optimizers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(nnx.Module):
    """A layer, a counter of batches, and one of optimizer steps."""

    def __init__(self):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.batches = tallax.Counter()
        self.updates = tallax.Counter()


@functools.cache
def accumulating(before=None, **options):
    """Returns a clip and an optimizer that both follow schedules, accumulated; `before` sees every micro-step."""
    inner = optax.chain(tallax.clip_by_global_norm(THRESHOLD), tallax.inject_schedules(optax.sgd, learning_rate=RATE))
    steps = optax.MultiSteps(inner, every_k_schedule=EVERY, **options).gradient_transformation()
    return steps if before is None else optax.chain(before, steps)


def loss_of(net, x):
    return (net.layer(x) ** 2).mean()


@functools.cache
def step_of(compiled, by):
    """Returns a step with `step=` the counter that `by` names; the tests share its programs."""

    def step(both, x):
        net, optimizer = both.net, both.optimizer
        grads = tallax.grad(loss_of)(net, x)
        optimizer.update(net, grads, **({"step": getattr(net, by)} if by else {}))
        net.batches += 1
        if isinstance(optimizer.opt_state, optax.MultiStepsState):
            net.updates.set(optimizer.opt_state.gradient_step[...])

    return compiled(step)


def trained(compiled, transformation, batches, by=None):
    """Trains a new net on `batches`; returns it with its optimizer."""
    with nnx.set_graph_mode(compiled is MODES["graph"]):
        net = Net()
        both = nnx.Dict(net=net, optimizer=nnx.Optimizer(net, transformation, wrt=nnx.Param))
        for x in batches:
            step_of(compiled, by)(both, x)
    return net, both.optimizer


def rate_of(optimizer):
    """Returns the learning rate of the last optimizer step."""
    return float(nnx.as_pure(optimizer.opt_state).inner_opt_state[1].hyperparams["learning_rate"])


BATCHES = [jnp.full((2, 3), float(k + 1)) for k in range(10)]
every_mode = pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)


@every_mode
@pytest.mark.parametrize(("by", "count"), [(None, 1), ("updates", 1), ("batches", 7)])
def test_two_kinds_of_step(compiled, by, count):
    """Ten batches are two optimizer steps; schedules read the counter they are given, or count optimizer steps."""
    net, optimizer = trained(compiled, accumulating(), BATCHES, by)
    assert (int(net.batches), int(net.updates), int(optimizer.step[...])) == (10, 2, 10)
    counts = tallax.clip_counts(optimizer)
    assert counts.updates == 2
    assert counts.max_norm == pytest.approx(float(THRESHOLD(count)))
    assert rate_of(optimizer) == pytest.approx(float(RATE(count)))


@functools.cache
def by_the_mean_gradient():
    """Returns the kernel before and after one update by the mean gradient of four batches, and the clip's counts."""
    net = Net()
    before = np.asarray(net.layer.kernel[...])
    inner = optax.chain(tallax.clip_by_global_norm(THRESHOLD), tallax.inject_schedules(optax.sgd, learning_rate=RATE))
    optimizer = nnx.Optimizer(net, inner, wrt=nnx.Param)

    @nnx.jit
    def update(net, optimizer):
        grads = [tallax.grad(loss_of)(net, x) for x in BATCHES[:EVERY]]
        optimizer.update(net, jax.tree.map(lambda *leaves: sum(leaves) / EVERY, *grads), step=EVERY - 1)

    update(net, optimizer)
    return before, np.asarray(net.layer.kernel[...]), tallax.clip_counts(optimizer)


@every_mode
def test_the_update_is_that_of_the_mean_gradient(compiled):
    """Four batches by MultiSteps and their mean gradient at once move the parameters alike, clip and rate included."""
    net, optimizer = trained(compiled, accumulating(), BATCHES[:EVERY], "batches")
    before, expected, counts = by_the_mean_gradient()
    kernel = np.asarray(net.layer.kernel[...])
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)
    assert np.abs(kernel - before).max() > 0.01
    assert tallax.clip_counts(optimizer) == counts


@every_mode
def test_a_clip_before_it_counts_micro_steps(compiled):
    """If gradients are clipped before they are accumulated, each batch counts as an update of the clip."""
    inner = optax.MultiSteps(optax.sgd(0.1), EVERY).gradient_transformation()
    _, optimizer = trained(compiled, optax.chain(tallax.clip_by_global_norm(0.5), inner), BATCHES)
    counts = tallax.clip_counts(optimizer)
    assert (counts.updates, counts.clipped) == (10, 10)


@every_mode
@pytest.mark.parametrize("at", [0, 3, 4])
def test_a_skipped_micro_step_counts_as_a_batch_only(compiled, at):
    """A batch that MultiSteps skips changes no count in the optimizer, but the model's own counter counts it."""
    batches = [*BATCHES[:at], jnp.full((2, 3), jnp.nan), *BATCHES[at:8]]
    options = {"should_skip_update_fn": optax.skip_not_finite}
    net, optimizer = trained(compiled, accumulating(**options), batches, "updates")
    clean, reference = trained(compiled, accumulating(**options), BATCHES[:8], "updates")
    assert (int(net.batches), int(clean.batches)) == (9, 8)
    assert int(net.updates) == int(clean.updates) == 2
    assert tallax.clip_counts(optimizer) == tallax.clip_counts(reference)
    assert tallax.clip_counts(optimizer).nonfinite == 0
    assert np.asarray(net.layer.kernel[...]).tobytes() == np.asarray(clean.layer.kernel[...]).tobytes()


@every_mode
def test_one_trace(compiled):
    """Micro-steps and optimizer steps are one program."""
    traces = []
    counted = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params=None, **_: (traces.append(1), (updates, state))[1]
    )
    trained(compiled, accumulating(before=counted), BATCHES, "batches")
    assert len(traces) == 1


def test_counts_within_it_are_exact():
    """A count of optimizer steps passes 2**32 inside of MultiSteps, whose own is int32."""
    clip = tallax.clip_by_global_norm(1.0)
    steps = optax.MultiSteps(clip, every_k_schedule=2)
    params = {"w": jnp.ones(3)}
    state = steps.init(params)
    full = jnp.array([2**32 - 1, 0], jnp.uint32)
    state = state._replace(inner_opt_state=state.inner_opt_state._replace(updates=full, clipped=full))
    update = jax.jit(functools.partial(steps.update, step=jnp.int32(0)))
    for _ in range(2):
        _, state = update({"w": jnp.full(3, 5.0)}, state, params)
    assert tallax.clip_counts(state).updates == tallax.clip_counts(state).clipped == 2**32
