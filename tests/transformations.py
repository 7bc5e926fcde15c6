# SPDX-License-Identifier: Apache-2.0
"""More ways to run a model than statecheck tries: rarer transformations, copies, and nests as real code has them.

They have the form of the package's own registry: each runs `call(model, batch)` once per batch and leaves the model as
plain calls leave it. Where the package's registry has a transformation under `jit`, it is outside here, since to
compile them all would take minutes. Those over stacked models run two lanes, the first with other batches, and hand the
model the state of the last one, so that a lane which takes part in another's update is seen.
"""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import tallax
from tallax.checking import _split_transformations as split_transformations
from tallax.checking._transformations import (
    GRAPH,
    NO_UPDATES,
    RAW,
    TREE,
    Transformation,
    loss_of,
    no_tangent,
    skipping,
    stacked,
    unstacked,
)

NNX = (GRAPH, NO_UPDATES, TREE)


def _each(transform):
    """Returns a run of `transform(call)`, batch by batch."""

    def run(call, model, batches):
        step = transform(call)
        return [step(model, batch) for batch in batches]

    return run


_raw_each = split_transformations.stepwise  # the same for a function of state


# --- derivatives ------------------------------------------------------------------------------------------------------


def _with_aux(call):
    def loss(model, batch):
        outputs = call(model, batch)
        return loss_of(outputs), outputs

    return loss


def _in_value_and_grad(transform):
    def differentiated(call):
        run = tallax.value_and_grad(_with_aux(transform(call)), has_aux=True)
        return lambda model, batch: run(model, batch)[0][1]

    return differentiated


def _raw_in_grad(transform=lambda pure: pure):
    """Returns a transformation of a pure function into the gradient of `transform(pure)`."""

    def differentiated(pure):
        def step(state, batch):
            params, rest = nnx.split_state(state, nnx.Param, ...)

            def loss(params):
                outputs, state = transform(pure)(nnx.merge_state(params, rest), batch)
                return loss_of(outputs), (outputs, state)

            return jax.grad(loss, has_aux=True)(params)[1]

        return step

    return differentiated


def _grad_alone(differentiate):
    """Returns a run that asks for gradients alone: neither the value nor aux comes back."""

    def run(call, model, batches):
        step = differentiate(lambda model, batch: loss_of(call(model, batch)))
        for batch in batches:
            assert list(step(model, batch)) == ["layer"]

    return run


def _on_split_state(call):
    """Runs Flax's recipe for all modes: parameters and the rest are arguments, and the forward pass merges them."""

    def step(model, batch):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest):
            return _with_aux(call)(nnx.merge(graphdef, params, rest), batch)

        return nnx.value_and_grad(loss, has_aux=True, graph=False)(params, rest)[0][1]

    return step


def _vjp_of_inputs(call):
    def step(model, batch):
        outputs, pull = nnx.vjp(call, model, batch)
        pull(outputs)
        return outputs

    return step


def _raw_vjp_of_inputs(pure):
    def step(state, batch):
        outputs, pull, state = jax.vjp(pure, state, batch, has_aux=True)
        pull(outputs)
        return outputs, state

    return step


def _jvp_of_inputs(call):
    return lambda model, batch: nnx.jvp(call, (model, batch), (jax.tree.map(no_tangent, model), batch))[0]


def _raw_jvp_of_inputs(pure):
    def step(state, batch):
        outputs, _, state = jax.jvp(lambda batch: pure(state, batch), (batch,), (batch,), has_aux=True)
        return outputs, state

    return step


def _raw_linearize(pure):
    def step(state, batch):
        outputs, push, state = jax.linearize(pure, state, batch, has_aux=True)
        push(*jax.tree.map(no_tangent, (state, batch)))
        return outputs, state

    return step


def _raw_twice(differentiate):
    """Returns the transformation of a pure function into a second derivative of its loss."""

    def differentiated(pure):
        def step(state, batch):
            def loss(batch):
                outputs, after = pure(state, batch)
                return loss_of(outputs) ** 2, (outputs, after)

            return differentiate(loss)(batch)[1]

        return step

    return differentiated


def _hessian(loss):
    return jax.hessian(loss, has_aux=True)


def _grad_of_grad(loss):
    def norm(batch):
        gradients, aux = jax.grad(loss, has_aux=True)(batch)
        return sum((g**2).sum() for g in gradients), aux

    return jax.grad(norm, has_aux=True)


def _with_own_rule(call):
    """Returns `call` with a derivative of its own, as straight-through estimators have; here it is zero."""
    f = nnx.custom_vjp(call)
    in_graph_mode = nnx.set_graph_mode.current_value() and nnx.set_graph_updates.current_value()

    def forward(model, batch):
        return call(model, batch), (model, batch)

    def backward(residuals, cotangent):
        model, batch = residuals
        # In graph mode the cotangents of the arguments' new state come first.
        return cotangent[0][0] if in_graph_mode else jax.tree.map(no_tangent, model), jax.tree.map(no_tangent, batch)

    f.defvjp(forward, backward)
    return f


def _raw_with_own_rule(pure):
    f = jax.custom_vjp(pure)
    f.defvjp(
        lambda state, batch: (pure(state, batch), (state, batch)),
        lambda residuals, cotangent: jax.tree.map(no_tangent, residuals),
    )
    return f


POLICIES = {
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "save_only_these_names": jax.checkpoint_policies.save_only_these_names("logits"),
}


def _remat(name, policy):
    """Returns the gradient of a rematerialised call; compiled, since op by op float averages round differently."""

    def named(outputs):
        return tuple(checkpoint_name(output, "logits") for output in outputs)  # what the last policy goes by

    def forward(call):
        return nnx.remat(lambda model, batch: named(call(model, batch)), policy=policy)

    def raw(pure):
        def step(state, batch):
            outputs, state = pure(state, batch)
            return named(outputs), state

        return jax.checkpoint(step, policy=policy)

    return Transformation(
        f"grad of remat, {name}",
        _each(lambda call: nnx.jit(_in_value_and_grad(forward)(call))),
        _raw_each(lambda pure: jax.jit(_raw_in_grad(raw)(pure))),
        differentiates=True,
    )


# --- loops ------------------------------------------------------------------------------------------------------------


def _scan_of(transform):
    def run(call, model, batches):
        def body(model, batch):
            return model, transform(call)(model, batch)

        scan = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        return unstacked(scan(model, stacked(batches))[1], len(batches))

    return run


def _raw_scan_of(transform):
    return split_transformations.on_state(
        lambda pure, state, batches: split_transformations.split_scan(transform(pure), state, batches)
    )


def scan_broadcast(call, model, batches, axes=None):
    """Scans over batches with the model as it is in every iteration, but for what `axes` carries."""
    return unstacked(nnx.scan(call, in_axes=(axes, 0), out_axes=0)(model, stacked(batches)), len(batches))


def _scan_carrying_state(call, model, batches):
    return scan_broadcast(call, model, batches, nnx.StateAxes({nnx.Param: None, ...: nnx.Carry}))


def _if_any(call):
    """Returns `call` in the branch that is taken, on a condition that the compiler does not know."""

    def step(model, batch):
        return nnx.cond((batch[0] != 0).any(), call, skipping(call, model, batch), model, batch)

    return step


def _raw_if_any(pure):
    def step(state, batch):
        zeros = split_transformations.zeros_like_each(jax.eval_shape(pure, state, batch)[0])
        return jax.lax.cond((batch[0] != 0).any(), pure, lambda state, batch: (zeros, state), state, batch)

    return step


def _summed_by_scan(call, model, batches):
    """Sums the gradients of micro-batches in the carry of a scan, beside the model."""

    def body(carry, batch):
        model, total = carry
        grads, outputs = tallax.grad(_with_aux(call), has_aux=True)(model, batch)
        return (model, jax.tree.map(jnp.add, total, nnx.as_pure(grads))), outputs

    zeros = jax.tree.map(jnp.zeros_like, nnx.as_pure(nnx.state(model, nnx.Param)))
    scan = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    return unstacked(scan((model, zeros), stacked(batches))[1], len(batches))


# --- stacked models ---------------------------------------------------------------------------------------------------

_LANES = 2


def _stack_like(model):
    """Returns new models of the class of one, as `nnx.vmap` makes the layers of a network."""
    return nnx.vmap(lambda _: type(model)(), in_axes=0, out_axes=0)(jnp.arange(_LANES))


def _in_lanes(batch, other):
    return jax.tree.map(lambda x, y: jnp.stack([y, x]), batch, other)


def _last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


def _over_lanes(transform):
    """Returns a run of `transform(call)` on stacked models, batch by batch."""

    def run(call, model, batches):
        stack, step = _stack_like(model), transform(call)
        pairs = zip(batches, reversed(batches), strict=True)
        outputs = [_last(step(stack, _in_lanes(*pair))) for pair in pairs]
        nnx.update(model, _last(nnx.state(stack)))
        return outputs

    return run


def _raw_over_lanes(transform):
    def loop(pure, state, batches):
        stack, step, outputs = jax.tree.map(lambda x: jnp.stack([x] * _LANES), state), transform(pure), []
        for pair in zip(batches, reversed(batches), strict=True):
            output, stack = step(stack, _in_lanes(*pair))
            outputs.append(_last(output))
        return outputs, _last(stack)

    return split_transformations.on_state(loop)


def _vmapped(call):
    return nnx.vmap(call, in_axes=0, out_axes=0)


def _layers(call):
    """Returns a scan over the layers of a network, which hand something on from one to the next."""

    def body(carry, layer, batch):
        return carry + 1, call(layer, batch)

    scan = nnx.scan(body, in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
    return lambda stack, batches: scan(jnp.int32(0), stack, batches)[1]


def _raw_layers(pure):
    def body(carry, layer):
        return carry + 1, pure(*layer)

    return lambda stack, batches: jax.lax.scan(body, jnp.int32(0), (stack, batches))[1]


def _vmap_of_scan(call, model, batches):
    def epoch(model, batches):
        def body(model, batch):
            return model, call(model, batch)

        return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, batches)[1]

    stack = _stack_like(model)
    outputs = _vmapped(epoch)(stack, _in_lanes(stacked(batches), stacked(batches[::-1])))
    nnx.update(model, _last(nnx.state(stack)))
    return unstacked(_last(outputs), len(batches))


# --- optimizers and copies --------------------------------------------------------------------------------------------


def _multi_steps(call, model, batches):
    """Trains with gradients accumulated over two batches, at a rate of zero, so that the outputs stay."""
    accumulating = optax.MultiSteps(optax.sgd(0.0), every_k_schedule=2).gradient_transformation()
    optimizer = nnx.Optimizer(model, accumulating, wrt=nnx.Param)

    def step(model, optimizer, batch):
        (_, outputs), grads = tallax.value_and_grad(_with_aux(call), has_aux=True)(model, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
            optimizer.update(model, grads)
        return outputs

    compiled = nnx.jit(step)
    return [compiled(model, optimizer, batch) for batch in batches]


def _copied(copied):
    """Returns a run in which each call is made on a copy of what the call before it left."""

    def run(call, model, batches):
        outputs, current = [], model
        for batch in batches:
            current = copied(current)
            outputs.append(call(current, batch))
        nnx.update(model, nnx.state(current))
        return outputs

    return run


MORE = (
    Transformation("tallax.grad", _grad_alone(tallax.grad), _raw_each(_raw_in_grad()), differentiates=True),
    Transformation("nnx.grad", _grad_alone(nnx.grad), modes=(GRAPH,), differentiates=True),
    Transformation("nnx.value_and_grad of split state", _each(_on_split_state), modes=NNX, differentiates=True),
    Transformation(
        "vjp of inputs, too", _each(_vjp_of_inputs), _raw_each(_raw_vjp_of_inputs), modes=(NO_UPDATES, TREE, RAW)
    ),
    Transformation(
        "jvp of inputs, too", _each(_jvp_of_inputs), _raw_each(_raw_jvp_of_inputs), modes=(NO_UPDATES, TREE, RAW)
    ),
    Transformation("linearize", raw=_raw_each(_raw_linearize), modes=(RAW,)),
    Transformation("hessian", raw=_raw_each(_raw_twice(_hessian)), modes=(RAW,)),
    Transformation("grad of grad", raw=_raw_each(_raw_twice(_grad_of_grad)), modes=(RAW,)),
    Transformation(
        "vmap of vjp", raw=_raw_over_lanes(lambda pure: jax.vmap(split_transformations.split_vjp(pure))), modes=(RAW,)
    ),
    Transformation("custom_vjp", _each(_with_own_rule), _raw_each(_raw_with_own_rule)),
    Transformation(
        "grad of custom_vjp",
        _each(_in_value_and_grad(_with_own_rule)),
        _raw_each(_raw_in_grad(_raw_with_own_rule)),
        differentiates=True,
    ),
    *(_remat(name, policy) for name, policy in POLICIES.items()),
    Transformation("scan, broadcast", scan_broadcast, modes=(NO_UPDATES, TREE)),
    Transformation("scan, parameters broadcast, state carried", _scan_carrying_state, modes=(GRAPH,)),
    Transformation("scan of cond", _scan_of(_if_any), _raw_scan_of(_raw_if_any)),
    Transformation(
        "scan of grad of remat",
        raw=_raw_scan_of(_raw_in_grad(jax.checkpoint)),
        modes=(RAW,),
        differentiates=True,
    ),
    Transformation("gradients summed by scan", _summed_by_scan, modes=NNX, differentiates=True),
    Transformation("vmap of stacked models", _over_lanes(_vmapped), _raw_over_lanes(jax.vmap)),
    Transformation("vmap of scan", _vmap_of_scan, modes=NNX),
    Transformation("scan over layers", _over_lanes(_layers), _raw_over_lanes(_raw_layers)),
    Transformation(
        "grad of scan over layers of remat",
        _over_lanes(lambda call: nnx.jit(_in_value_and_grad(lambda call: _layers(nnx.remat(call)))(call))),
        _raw_over_lanes(lambda pure: jax.jit(_raw_in_grad(lambda pure: _raw_layers(jax.checkpoint(pure)))(pure))),
        differentiates=True,
    ),
    Transformation("training with optax.MultiSteps", _multi_steps, modes=NNX, differentiates=True),
    Transformation("nnx.clone", _copied(nnx.clone), modes=NNX),
    Transformation("copy.deepcopy", _copied(copy.deepcopy), modes=NNX),
    Transformation("pickle", _copied(lambda model: pickle.loads(pickle.dumps(model))), modes=NNX),
    Transformation(
        "eval_shape",
        raw=_raw_each(lambda pure: lambda state, batch: (jax.eval_shape(pure, state, batch)[0], state)),
        modes=(RAW,),
        executes=False,
    ),
)
