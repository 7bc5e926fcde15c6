# SPDX-License-Identifier: Apache-2.0
"""The matrix: every way to run a model, in each of four modes. All must have the same result as plain calls.

A transformation runs `call(model, batch)` once per batch and leaves the model as the calls left it. It is written
twice: for NNX, whose transformations accept the model itself, and for plain JAX, whose transformations accept the state
that `nnx.split` returns. Both forms are the recommended ones, because the model is under test, not the transformation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tallax.checking._program import Batch, Call, Outputs, Run
from tallax.checking._split_transformations import (
    at,
    finished,
    loss_of,
    no_tangent,
    on_state,
    pulled,
    split_branch,
    split_fori_loop,
    split_jvp,
    split_scan,
    split_switch,
    split_value_and_grad,
    split_vjp,
    split_while_loop,
    stacked,
    stepwise,
    unstacked,
    zeros_like_each,
)
from tallax.compiling import compile_step
from tallax.differentiation import value_and_grad


@dataclass(frozen=True)
class Mode:
    """One of the ways to pass a model to a transformation.

    Attributes:
        name: How reports call it.
        graph: True for Flax's graph mode, False for tree mode.
        updates: Whether graph mode propagates structural changes.
        is_raw: Whether plain JAX transformations run on `nnx.split` state.
    """

    name: str
    graph: bool = True
    updates: bool = True
    is_raw: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets the mode of every `nnx` transformation within the block."""
        with nnx.set_graph_mode(self.graph), nnx.set_graph_updates(self.updates):
            yield


GRAPH = Mode("graph")
NO_UPDATES = Mode("graph_updates=False", updates=False)
TREE = Mode("tree", graph=False, updates=False)
RAW = Mode("split/merge", is_raw=True)
MODES = (GRAPH, NO_UPDATES, TREE, RAW)


@dataclass(frozen=True)
class Transformation:
    """A way to run a model once per batch.

    Attributes:
        name: How reports call it.
        nnx: The form for NNX, or None.
        raw: The form for plain JAX on the state of a split model, or None.
        modes: The modes that Flax supports.
        executes: Whether the calls are executed. If not, the model must not change.
        differentiates: Whether it needs parameters.
        is_basic: Whether it also runs on models without state, for which only outputs can differ.
        donates: Whether it donates the model's arrays, so that no two Variables may have the same array.
        takes_cycles: Whether, in graph mode, it accepts a model with reference cycles.
        is_eager: Whether it compiles nothing but operations. After a run without findings, the steps of the others are
            traced once, and not at each call.
        first_call: Whether a compiled run of the first call is enough for a model without findings so far. The calls
            after it start from the state of the reference, too.
        implied_by: The name of a transformation. If that one and this one in graph mode find nothing, this one finds
            nothing in the mode of that one either.
        compiled: The modes in which it always runs as users run it. In the others it is traced, and then evaluated
            without compilation, unless that raises.
    """

    name: str
    nnx: Run | None = None
    raw: Run | None = None
    modes: tuple[Mode, ...] = MODES
    executes: bool = True
    differentiates: bool = False
    donates: bool = False
    is_basic: bool = False
    takes_cycles: bool = True
    compiled: tuple[Mode, ...] = ()
    is_eager: bool = False
    first_call: bool = False
    implied_by: str = ""

    def run_in(self, mode: Mode) -> Run | None:
        """Returns the form for a mode, or None."""
        return (self.raw if mode.is_raw else self.nnx) if mode in self.modes else None


# --- NNX --------------------------------------------------------------------------------------------------------------


def _each(step: Callable[..., Any], model: Any, batches: Sequence[Batch]) -> Outputs:
    return [finished(step(model, batch)) for batch in batches]


def _steps(transform: Callable[[Call], Callable[..., Any]]) -> Run:
    """Returns a `Run` from a transformation of a call. With `once=True`, the step is traced only once."""

    def run(call: Call, model: Any, batches: Sequence[Batch], *, once: bool = False) -> Outputs:
        step = transform(call)
        return _each(nnx.jit(step) if once else step, model, batches)

    return run


def _jit_partial(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    step = nnx.jit_partial(call, model)
    return [finished(step(batch)) for batch in batches]


def _cached_partial(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    step = nnx.cached_partial(nnx.jit(call), model)
    return [finished(step(batch)) for batch in batches]


def _differentiated(call: Call, differentiate: Callable[..., Any]) -> Call:
    def loss(model: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        outputs = call(model, batch)
        return loss_of(outputs), outputs

    def step(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        (_, outputs), _ = differentiate(loss, has_aux=True)(model, batch)
        return outputs

    return step


# These derivatives are not compiled, so JAX passes the arrays of the state unchanged or as its own array types. A model
# that reads its state must accept both. Batches are passed without a derivative, because a model may pass them to
# functions that have none.


def _vjp(call: Call) -> Call:
    def step(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        outputs, pull, *_ = nnx.vjp(lambda model: call(model, batch), model)
        pulled(pull, outputs)
        return outputs

    return step


def _jvp(call: Call) -> Call:
    def step(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        return nnx.jvp(lambda model: call(model, batch), (model,), (jax.tree.map(no_tangent, model),))[0]

    return step


def _scan(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    def body(model: Any, batch: Batch) -> tuple[Any, tuple[jax.Array, ...]]:
        return model, call(model, batch)

    scan = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), length=len(batches))
    _, outputs = scan(model, stacked(batches))
    return unstacked(outputs, len(batches))


def _training_scan(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    def body(model: Any, batch: Batch) -> tuple[Any, tuple[jax.Array, ...]]:
        return model, _differentiated(nnx.remat(call), value_and_grad)(model, batch)

    scan = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), length=len(batches))

    def epoch(model: Any, batches: Batch) -> tuple[jax.Array, ...]:
        return scan(model, batches)[1]

    return unstacked(nnx.jit(epoch)(model, stacked(batches)), len(batches))


def _while_loop(call: Call, model: Any, batches: Sequence[Batch]) -> None:
    def body(carry: Any) -> Any:
        k, model, batches = carry
        call(model, at(batches, k))
        return k + 1, model, batches

    nnx.while_loop(lambda carry: carry[0] < len(batches), body, (jnp.int32(0), model, stacked(batches)))


def _fori_loop(call: Call, model: Any, batches: Sequence[Batch]) -> None:
    def body(k: Any, carry: Any) -> Any:
        model, batches = carry
        call(model, at(batches, k))
        return model, batches

    nnx.fori_loop(0, len(batches), body, (model, stacked(batches)))


def _branch(call: Call, *, is_taken: bool) -> Call:
    def step(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        return nnx.cond(is_taken, call, skipping(call, model, batch), model, batch)

    return step


def _switch(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    def step(model: Any, batch: Batch, choice: jax.Array) -> tuple[jax.Array, ...]:
        skip = skipping(call, model, batch)
        return nnx.switch(choice, [skip, call, skip], model, batch)

    compiled = nnx.jit(step)
    return _each(lambda model, batch: compiled(model, batch, jnp.int32(1)), model, batches)


def _compile_step(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    with compile_step(call, model) as step:
        return [finished(step(batch)) for batch in batches]


def _compile_step_of_cond(call: Call, model: Any, batches: Sequence[Batch]) -> Outputs:
    return _compile_step(_branch(call, is_taken=True), model, batches)


def _eval_shape(call: Call, model: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        nnx.eval_shape(call, model, batch)


def skipping(call: Call, model: Any, batch: Batch) -> Call:
    """Returns the branch that does nothing and returns zeros of the types that `call` returns."""
    outputs = nnx.eval_shape(call, model, batch)
    return lambda model, batch: zeros_like_each(outputs)


TRANSFORMATIONS = (
    # `jit` traces the same program as a plain call under a trace. A program that is not compiled donates nothing.
    Transformation("plain calls", _each, modes=(GRAPH, NO_UPDATES, TREE), is_basic=True, implied_by="jit"),
    Transformation("jit", _steps(nnx.jit), stepwise(jax.jit), is_basic=True),
    Transformation(
        "jit, donated",
        _steps(lambda call: nnx.jit(call, donate_argnums=0)),
        stepwise(lambda pure: jax.jit(pure, donate_argnums=0)),
        donates=True,
        compiled=(GRAPH,),
        implied_by="jit",
    ),
    Transformation("jit_partial", _jit_partial, modes=(NO_UPDATES, TREE)),
    Transformation("cached_partial", _cached_partial, modes=(GRAPH,)),
    Transformation(
        "nnx.value_and_grad",
        _steps(lambda call: nnx.jit(_differentiated(call, nnx.value_and_grad))),
        modes=(GRAPH,),
        differentiates=True,
    ),
    Transformation(
        "value_and_grad",
        _steps(lambda call: nnx.jit(_differentiated(call, value_and_grad))),
        stepwise(split_value_and_grad),
        differentiates=True,
        is_basic=True,
    ),
    *(
        Transformation(
            name,
            _steps(nnx_form),
            stepwise(raw_form),
            modes=(NO_UPDATES, TREE, RAW),
            differentiates=True,
            compiled=(NO_UPDATES,),
            is_eager=True,
            first_call=True,
        )
        for name, nnx_form, raw_form in (("vjp", _vjp, split_vjp), ("jvp", _jvp, split_jvp))
    ),
    Transformation(
        "remat", _steps(lambda call: nnx.jit(nnx.remat(call))), stepwise(lambda pure: jax.jit(jax.checkpoint(pure)))
    ),
    Transformation(
        "grad of remat",
        _steps(lambda call: nnx.jit(_differentiated(nnx.remat(call), value_and_grad))),
        stepwise(lambda pure: split_value_and_grad(jax.checkpoint(pure))),
        differentiates=True,
    ),
    Transformation("scan", _scan, on_state(split_scan), is_basic=True),
    Transformation("scan of grad of remat", _training_scan, modes=(GRAPH, NO_UPDATES, TREE), differentiates=True),
    Transformation("while_loop", _while_loop, on_state(split_while_loop)),
    Transformation("fori_loop", _fori_loop, on_state(split_fori_loop)),
    Transformation("cond", _steps(lambda call: nnx.jit(_branch(call, is_taken=True))), stepwise(split_branch(True))),
    Transformation(
        "cond, not taken",
        _steps(lambda call: nnx.jit(_branch(call, is_taken=False))),
        stepwise(split_branch(False)),
        executes=False,
    ),
    Transformation("switch", _switch, stepwise(split_switch)),
    Transformation(
        "eval_shape", _eval_shape, modes=(GRAPH, NO_UPDATES, TREE), executes=False, compiled=MODES, first_call=True
    ),
    Transformation("compile_step", _compile_step, modes=(GRAPH,), donates=True, takes_cycles=False, compiled=MODES),
    Transformation(
        "compile_step of cond", _compile_step_of_cond, modes=(GRAPH,), donates=True, takes_cycles=False, compiled=MODES
    ),
)
