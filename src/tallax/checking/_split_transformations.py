# SPDX-License-Identifier: Apache-2.0
"""JAX's own transformations, applied to the state that `nnx.split` returns.

The end of the file has the arithmetic on batches and outputs that both forms of a transformation need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax.checking._program import Batch, Call, Outputs, Run

Pure: TypeAlias = "Callable[[Any, Batch], tuple[tuple[jax.Array, ...], Any]]"


def on_state(loop: Callable[..., tuple[Outputs | None, Any]]) -> Run:
    """Returns a `Run` from a loop over a pure function `(state, batch) -> (outputs, state)`.

    The loop is called with the function, the state, the batches, and the options of the run.
    """

    def run(call: Call, model: Any, batches: Sequence[Batch], **options: bool) -> Outputs | None:
        graphdef, state = nnx.split(model)

        def pure(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
            model = nnx.merge(graphdef, state, copy=True)
            outputs = call(model, batch)
            return outputs, nnx.state(model)

        outputs, state = loop(pure, state, batches, **options)
        nnx.update(model, finished(state))
        return outputs

    return run


def stepwise(transform: Callable[[Pure], Any]) -> Run:
    """Returns a `Run` from a transformation of the pure function. With `once=True`, the step is traced only once."""

    def loop(pure: Pure, state: Any, batches: Sequence[Batch], *, once: bool = False) -> tuple[Outputs, Any]:
        step, outputs = jax.jit(transform(pure)) if once else transform(pure), []
        for batch in batches:
            output, state = finished(step(state, batch))
            outputs.append(output)
        return outputs, state

    return on_state(loop)


def split_value_and_grad(pure: Pure) -> Pure:
    def step(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
        params, rest = nnx.split_state(state, nnx.Param, ...)

        def loss(params: Any) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], Any]]:
            outputs, state = pure(nnx.merge_state(params, rest), batch)
            return loss_of(outputs), (outputs, state)

        return jax.value_and_grad(loss, has_aux=True)(params)[0][1]

    return jax.jit(step)


def split_vjp(pure: Pure) -> Pure:
    def step(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
        outputs, pull, state = jax.vjp(lambda state: pure(state, batch), state, has_aux=True)
        pulled(pull, outputs)
        return outputs, state

    return step


def split_jvp(pure: Pure) -> Pure:
    def step(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
        tangents = jax.tree.map(no_tangent, state)
        outputs, _, state = jax.jvp(lambda state: pure(state, batch), (state,), (tangents,), has_aux=True)
        return outputs, state

    return step


def split_scan(pure: Pure, state: Any, batches: Sequence[Batch]) -> tuple[Outputs, Any]:
    def body(state: Any, batch: Batch) -> tuple[Any, tuple[jax.Array, ...]]:
        outputs, state = pure(state, batch)
        return state, outputs

    state, outputs = jax.lax.scan(body, state, stacked(batches), length=len(batches))
    return unstacked(outputs, len(batches)), state


def split_while_loop(pure: Pure, state: Any, batches: Sequence[Batch]) -> tuple[None, Any]:
    xs = stacked(batches)
    start = (jnp.int32(0), state)
    _, state = jax.lax.while_loop(
        lambda carry: carry[0] < len(batches), lambda carry: (carry[0] + 1, pure(carry[1], at(xs, carry[0]))[1]), start
    )
    return None, state


def split_fori_loop(pure: Pure, state: Any, batches: Sequence[Batch]) -> tuple[None, Any]:
    xs = stacked(batches)
    return None, jax.lax.fori_loop(0, len(batches), lambda k, state: pure(state, at(xs, k))[1], state)


def split_branch(is_taken: bool) -> Callable[[Pure], Pure]:
    def transform(pure: Pure) -> Pure:
        def step(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
            outputs = jax.eval_shape(pure, state, batch)[0]
            return jax.lax.cond(is_taken, pure, lambda state, batch: (zeros_like_each(outputs), state), state, batch)

        return jax.jit(step)

    return transform


def split_switch(pure: Pure) -> Pure:
    def step(choice: jax.Array, state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
        def skip(state: Any, batch: Batch) -> tuple[tuple[jax.Array, ...], Any]:
            return zeros_like_each(outputs), state

        outputs = jax.eval_shape(pure, state, batch)[0]
        return jax.lax.switch(choice, [skip, pure, skip], state, batch)

    compiled = jax.jit(step)
    return lambda state, batch: compiled(jnp.int32(1), state, batch)


# --- batches and outputs ----------------------------------------------------------------------------------------------


def stacked(batches: Sequence[Batch]) -> Batch:
    """Returns one batch with a leading axis over the calls."""
    return tuple(map(_stacked, zip(*batches, strict=True)))


def _stacked(arrays: tuple[jax.Array, ...]) -> jax.Array:
    is_key = jnp.issubdtype(arrays[0].dtype, jax.dtypes.prng_key)
    if is_key or is_traced(*arrays) or len(arrays[0].devices()) > 1:
        return jnp.stack(arrays)
    return jax.device_put(np.stack([np.asarray(x) for x in arrays]))  # compiles nothing, as `jnp.asarray` would


def unstacked(outputs: tuple[jax.Array, ...], count: int) -> Outputs:
    """Returns the outputs of each call."""
    is_key = [jnp.issubdtype(output.dtype, jax.dtypes.prng_key) for output in outputs]
    # In NumPy, which compiles nothing; outputs are compared there anyway. Inside another trace there are no values.
    arrays = [
        output if key or is_traced(output) else np.asarray(output) for output, key in zip(outputs, is_key, strict=True)
    ]
    return [tuple(output[k] for output in arrays) for k in range(count)]


def finished(values: Any) -> Any:
    """Returns values when they are computed. For a tracer, JAX would raise and catch an error, which takes 9 ms."""
    return values if is_traced(*jax.tree.leaves(values)) else jax.block_until_ready(values)


def at(batches: Batch, k: Any) -> Batch:
    """Returns the k-th of stacked batches; k may be traced."""
    return tuple(jax.lax.dynamic_index_in_dim(x, k, keepdims=False) for x in batches)


def loss_of(outputs: Sequence[jax.Array]) -> jax.Array:
    """Returns a float32 that depends on every float in `outputs`, differently on each entry."""
    loss = jnp.zeros((), jnp.float32)
    for output in outputs:
        if jnp.issubdtype(output.dtype, jnp.floating):
            weights = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
            loss += (output.astype(jnp.float32) * weights).sum()
    return loss


def pulled(pull: Any, outputs: Any) -> None:
    """Runs the backward pass, if possible without compiling its operations: no check reads its results."""
    tangents = jax.tree.map(no_tangent, outputs)
    try:
        jax.eval_shape(lambda: pull(tangents))
    except Exception:  # it reads values
        pull(tangents)


def no_tangent(x: Any) -> Any:
    """Returns the zero tangent of an array. For integers and keys, JAX has a special dtype for it."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.zeros(x.shape, jax.dtypes.float0)
    if not isinstance(x, jax.Array) or is_traced(x) or len(x.devices()) > 1:
        return jnp.zeros_like(x)
    return jax.device_put(np.zeros(x.shape, x.dtype))  # compiles nothing


def zeros_like_each(outputs: Any) -> tuple[jax.Array, ...]:
    """Returns zeros of the shapes and dtypes of abstract outputs."""
    return tuple(jnp.zeros(output.shape, output.dtype) for output in outputs)
