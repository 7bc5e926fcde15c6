# SPDX-License-Identifier: Apache-2.0
"""Uses of a model that go wrong: those that raise, and those whose loss nothing within the model can see.

Each has the form of a run in the matrix, `use(call, model, batches)`; `tests/cases.py` says what comes of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

import tallax
from tallax.checking import _transformations as package
from tallax.checking._transformations import no_tangent, stacked
from tests.transformations import scan_broadcast

# --- a model that the transformed function closes over ----------------------------------------------------------------


_CARRY = {"in_axes": (nnx.Carry, 0), "out_axes": (nnx.Carry, 0)}

# Each calls `f(x)`, which writes to a model that is not its argument, under a transformation.
CAPTURED_BY_NNX = {
    "nnx.jit": lambda f, x: nnx.jit(f)(x),
    "nnx.grad": lambda f, x: nnx.grad(f)(x),
    "nnx.remat": lambda f, x: nnx.remat(f)(x),
    "nnx.scan": lambda f, x: nnx.scan(lambda carry, x: (carry, f(x)), **_CARRY)(jnp.int32(0), x[None]),
    "nnx.while_loop": lambda f, x: nnx.while_loop(
        lambda carry: carry[0] < 1, lambda carry: (carry[0] + 1, f(carry[1]) * carry[1]), (jnp.int32(0), x)
    ),
    "nnx.fori_loop": lambda f, x: nnx.fori_loop(0, 1, lambda k, x: f(x) * x, x),
    "nnx.cond": lambda f, x: nnx.cond(True, f, lambda x: x.sum(), x),
    "nnx.switch": lambda f, x: nnx.switch(jnp.int32(0), [f, lambda x: x.sum()], x),
    "nnx.vmap": lambda f, x: nnx.vmap(f)(x[None]),
    "nnx.eval_shape": nnx.eval_shape,
}
CAPTURED_BY_NNX_DERIVATIVES = {  # which Flax does not offer in graph mode
    "nnx.vjp": nnx.vjp,
    "nnx.jvp": lambda f, x: nnx.jvp(f, (x,), (x,)),
}
CAPTURED_BY_JAX = {
    "jax.jit": lambda f, x: jax.jit(f)(x),
    "jax.grad": lambda f, x: jax.grad(f)(x),
    "jax.vjp": jax.vjp,
    "jax.jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jax.checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "jax.vmap": lambda f, x: jax.vmap(f)(x[None]),
    "jax.eval_shape": jax.eval_shape,
    "jax.lax.scan": lambda f, x: jax.lax.scan(lambda carry, x: (carry, f(x)), jnp.int32(0), x[None]),
    "jax.lax.map": lambda f, x: jax.lax.map(f, x[None]),
    "jax.lax.while_loop": lambda f, x: jax.lax.while_loop(
        lambda carry: carry[0] < 1, lambda carry: (carry[0] + 1, f(carry[1]) * carry[1]), (jnp.int32(0), x)
    ),
    "jax.lax.fori_loop": lambda f, x: jax.lax.fori_loop(0, 1, lambda k, x: f(x) * x, x),
    "jax.lax.cond": lambda f, x: jax.lax.cond(True, f, lambda x: x.sum(), x),
    "jax.lax.switch": lambda f, x: jax.lax.switch(jnp.int32(0), [f, lambda x: x.sum()], x),
}


# --- a model that is copied and dropped -------------------------------------------------------------------------------


def _each(transform):
    """Returns a use in which each batch goes through `transform(call)`, from which only the outputs come back."""

    def use(call, model, batches):
        step = transform(call)
        return [step(model, batch) for batch in batches]

    return use


jax_jit = _each(jax.jit)
jax_checkpoint = _each(jax.checkpoint)
jax_cond = _each(lambda call: lambda model, batch: jax.lax.cond(True, call, call, model, batch))
jax_switch = _each(lambda call: lambda model, batch: jax.lax.switch(jnp.int32(0), [call, call], model, batch))
a_copy = _each(lambda call: lambda model, batch: call(nnx.clone(model), batch))


def jax_vmap(call, model, batches):
    """Maps with the model broadcast, and takes only the outputs."""
    return jax.vmap(call, in_axes=(None, 0))(model, stacked(batches))


def jax_scan(call, model, batches):
    """Carries the model through a scan, and takes only the outputs."""
    return jax.lax.scan(lambda model, batch: (model, call(model, batch)), model, stacked(batches))[1]


def jax_grad(call, model, batches, **options):
    """Differentiates the model as if it were a tree of parameters."""
    gradient = jax.grad(lambda model, batch: package.loss_of(call(model, batch)), **options)
    return [gradient(model, batch) for batch in batches]


def jax_grad_allow_int(call, model, batches):
    """Lets integers be, where jax.grad refuses them."""
    return jax_grad(call, model, batches, allow_int=True)


def while_condition(call, model, batches):
    """Calls the model in the condition of a loop."""

    def condition(carry):
        k, model, batches = carry
        call(model, package.at(batches, k))
        return k < len(batches) - 1

    def body(carry):
        return carry[0] + 1, *carry[1:]

    nnx.while_loop(condition, body, (jnp.int32(0), model, stacked(batches)))


def forgetful(call):
    """Returns `call` with a forward rule, which runs in its place in training, that leaves out what a call counts."""
    f = nnx.custom_vjp(call)
    in_graph_mode = nnx.set_graph_mode.current_value() and nnx.set_graph_updates.current_value()

    def forward(model, batch):
        return (model.layer(*batch),), (model, batch)

    def backward(residuals, cotangent):
        model, batch = residuals
        return cotangent[0][0] if in_graph_mode else jax.tree.map(no_tangent, model), jax.tree.map(no_tangent, batch)

    f.defvjp(forward, backward)
    return f


def forward_rule_forgets(call, model, batches):
    """Trains with such a rule."""
    step = tallax.value_and_grad(lambda model, batch: package.loss_of(forgetful(call)(model, batch)))
    return [step(model, batch) for batch in batches]


# --- a model that is broadcast ----------------------------------------------------------------------------------------


def scan_state_axes(call, model, batches):
    """Broadcasts the state by StateAxes, where nnx.Carry would carry it."""
    return scan_broadcast(call, model, batches, nnx.StateAxes({...: None}))


def vmap_broadcast(call, model, batches):
    """Maps over batches with one model for all lanes."""
    return nnx.vmap(call, in_axes=(None, 0), out_axes=0)(model, stacked(batches))


def vmap_broadcast_in_jit(call, model, batches):
    """Does so in a compiled step."""
    return nnx.jit(lambda model: vmap_broadcast(call, model, batches))(model)


# --- a value that is read when the function is compiled ---------------------------------------------------------------


def closure_read(call, model, batches):
    """Calls the model, and after each call a compiled function that closes over it and returns what it holds."""
    read = jax.jit(lambda x: (x, jax.tree.leaves(nnx.as_pure(nnx.state(model)))))
    return [[call(model, batch), read(batch[0])][1][1] for batch in batches]


# --- one item under two names -----------------------------------------------------------------------------------------


def two_names_of(model):
    """Returns a module that holds one part twice."""
    return nnx.Dict(first=model, second=model)


def under_two_names(transform):
    """Returns a use in which a function that calls one part by both its names goes through `transform`."""

    def use(call, model, batches):
        def both_called(both, batch):
            call(both.first, batch)
            call(both.second, batch)
            return both

        step = transform(both_called)
        both = two_names_of(model) if not isinstance(model, nnx.Dict) else model
        for batch in batches:
            after = step(both, batch)
            nnx.update(both.first, nnx.state(after.first))

    return use
