# SPDX-License-Identifier: Apache-2.0
"""The program under test, which is a factory, a call and one batch per call; and its reference run, plain calls."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import StatecheckError, describe
from tallax.checking._model_copies import Template
from tallax.checking._snapshot import Snapshot, arrays_agree, changed, differences, snapshot
from tallax.checking._watched_writes import Writes

Batch: TypeAlias = tuple[jax.Array, ...]
Outputs: TypeAlias = list[tuple[jax.Array, ...]]
Call: TypeAlias = Callable[[Any, Batch], tuple[jax.Array, ...]]
Run: TypeAlias = "Callable[[Call, Any, Sequence[Batch]], Outputs | None]"


@dataclass
class Program:
    """A model's factory, and a call that takes the arrays of one batch and returns arrays.

    Attributes:
        name: The name of the model's class.
        make: A function that returns a new model.
        call: `call(model, batch)` runs the model once, and returns every array and number of its output in a tuple.
        batches: The arrays of each call's inputs; other inputs are part of `call`. All batches have the same shapes and
            dtypes. Each batch is the previous one, rolled by one along its first axis.
        is_own_call: True if `call` is the model's own call, and not a function such as a training step.
        needs_jit: True if plain calls do not run without `jax.jit`, or are slow without it.
        templates: The model before the first call, after it, and so on, as far as copies of these models are no
            different from models that are made and called.
        writes: The writes of plain calls with all batches, if they were watched.
        results: The results of parts of the runs so far; see `_evaluation`.
    """

    name: str
    make: Callable[[], Any]
    call: Callable[[Any, Batch], tuple[jax.Array, ...]]
    batches: tuple[Batch, ...]
    is_own_call: bool = True
    needs_jit: bool = False
    templates: tuple[Template, ...] = ()
    writes: Writes | None = None
    results: dict[Hashable, list[Any]] = field(default_factory=dict)

    @property
    def is_copied(self) -> bool:
        """True if copies stand for the model at every call, so that no call leaves anything but Variables behind."""
        return len(self.templates) > len(self.batches)

    @property
    def template(self) -> Template | None:
        """The template of a new model."""
        return self.templates[0] if self.templates else None

    def new_model(self) -> Any:
        """Returns a new model, from the template if there is one."""
        return self.model_after(0)

    def model_after(self, calls: int) -> Any:
        """Returns a model after plain calls with the first batches, from a template if there is one."""
        if calls < len(self.templates):
            return self.templates[calls].copy()
        return self.called_model(calls)

    def called_model(self, calls: int) -> Any:
        """Returns a model that the factory made, after plain calls with the first batches."""
        model = self.make()
        for batch in self.batches[:calls]:
            self.plain_call(model, batch)
        return model

    def plain_call(self, model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        """Runs the model once, if possible without compiling what it compiles: each operation by itself.

        JAX keeps the program of an operation, but apart for calls with and without `jax.disable_jit()`. So all plain
        calls are made in the same way as those of the reference.
        """
        with jax.disable_jit(not self.needs_jit):
            return self.call(model, batch)


def program_of(make: Any, inputs: tuple[Any, ...], calls: int, call: Callable[..., Any] | None) -> Program:
    """Returns the program for `statecheck(make, *inputs, calls=calls, call=call)`.

    Raises:
        StatecheckError: `make` is not a factory of modules, or its model has no `__call__` and `call` is None.
    """
    leaves, tree = jax.tree.flatten(inputs, is_leaf=lambda leaf: isinstance(leaf, nnx.Pytree | nnx.Variable))
    for leaf in leaves:
        if isinstance(leaf, nnx.Pytree | nnx.Variable):
            raise StatecheckError(
                "statecheck",
                "inputs must be arrays and plain values; a module would carry state from run to run.",
                got=f"a {type(leaf).__name__}",
                fix="create it inside call=: call=lambda model, x: model(x, rngs=nnx.Rngs(0))",
            )
    is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]

    def run(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
        arrays = iter(batch)
        given = [next(arrays) if varies else leaf for varies, leaf in zip(is_array, leaves, strict=True)]
        args = jax.tree.unflatten(tree, given)
        return numbers_of(model(*args) if call is None else call(model, *args))

    first = tuple(jnp.asarray(leaf) for varies, leaf in zip(is_array, leaves, strict=True) if varies)
    batches = tuple(tuple(_rolled(x, k) for x in first) for k in range(calls))
    fresh = factory_of(make)
    model = fresh()
    if call is None and not callable(model):
        raise StatecheckError(
            f"statecheck of {type(model).__name__}",
            "the model has no __call__, so call= is required.",
            got=f"a {type(model).__name__} without __call__",
            fix="call=lambda metric, x: metric.update(values=x)",
        )
    return Program(type(model).__name__, fresh, run, batches, call is None)


def factory_of(make: Any) -> Callable[[], Any]:
    """Returns a function without arguments that makes a new module at each call.

    If `make` is a module, it is copied each time. If `make` has a parameter named `rngs`, it gets `nnx.Rngs(0)`.
    """
    if isinstance(make, nnx.Pytree):
        return lambda: _copied(make)
    if not callable(make):
        raise StatecheckError(
            "statecheck",
            "requires a factory of modules.",
            got=describe(make),
            fix="statecheck(lambda: Model(nnx.Rngs(0)), x)",
        )
    parameters = _parameters_of(make)
    missing = [
        p.name
        for p in parameters
        if p.name != "rngs" and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        raise StatecheckError(
            f"statecheck of {getattr(make, '__qualname__', make)}",
            "the factory is called with no argument except rngs.",
            got=f"required arguments {', '.join(missing)}",
            fix="statecheck(lambda rngs: Model(..., rngs=rngs), x)",
        )
    takes_rngs = any(p.name == "rngs" for p in parameters)
    by_position = any(p.name == "rngs" and p.kind is p.POSITIONAL_ONLY for p in parameters)

    def fresh() -> Any:
        given = (nnx.Rngs(0),) if by_position else ()
        arguments = {"rngs": nnx.Rngs(0)} if takes_rngs and not by_position else {}
        model = make(*given, **arguments)
        if not isinstance(model, nnx.Pytree):  # a module or one of Flax's metrics
            raise StatecheckError(
                f"statecheck of {getattr(make, '__qualname__', make)}",
                "the factory must return a Flax NNX module.",
                got=describe(model),
                fix="return the model; call=step for a function of it: statecheck(make, x, call=step)",
            )
        return model

    return fresh


def _copied(model: Any) -> Any:
    """Returns a copy of a model with its own arrays. `nnx.clone` shares arrays, which some runs donate."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(copy.copy, state))


def _parameters_of(make: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters of a factory. For an NNX class, they are read from `__init__`, not from the metaclass."""
    given, keywords = (make.args, make.keywords) if isinstance(make, functools.partial) else ((), {})
    function = make.func if isinstance(make, functools.partial) else make
    if isinstance(function, type):
        make = functools.partial(function.__init__, None, *given, **keywords)
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):  # written in C, or an invalid partial, which raises when it is called
        return []
    return [parameter for parameter in parameters if parameter.name not in keywords]


def numbers_of(output: Any) -> tuple[jax.Array, ...]:
    """Returns the arrays and numbers within an output, also those stored in Variables. Other objects are skipped."""
    leaves = jax.tree.leaves(output, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    leaves = [leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for leaf in leaves]
    return tuple(
        jnp.asarray(leaf)
        for leaf in jax.tree.leaves(leaves)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
    )


def _rolled(x: jax.Array, k: int) -> jax.Array:
    is_plain = x.ndim and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    if not is_plain:
        return x
    # In NumPy: `jnp.roll` compiles a program for each shift. An array on several devices stays there.
    return jax.device_put(np.roll(np.asarray(x), k, axis=0)) if len(x.devices()) == 1 else jnp.roll(x, k, axis=0)


# --- the reference run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The state and the outputs of a model, call by call.

    Attributes:
        start: The values of the new model.
        after: The values of the model after each call.
        outputs: The outputs of each call, on the host.
        noisy: The paths whose values change by more than rounding if the inputs change by rounding. For example, Adam
            does this to a parameter whose gradient is zero except for rounding. For these paths, only "changed or not"
            is compared.
        has_noisy_outputs: True if the outputs are noisy in the same sense.
        last_seconds: The processor time of the last call.
    """

    start: Snapshot
    after: tuple[Snapshot, ...]
    outputs: Outputs
    noisy: frozenset[str] = frozenset()
    has_noisy_outputs: bool = False
    last_seconds: float = 0.0

    @property
    def end(self) -> Snapshot:
        """The values of the model after the last call."""
        return self.after[-1]

    def of_calls(self, calls: int) -> Reference:
        """Returns the reference of the first calls."""
        return dataclasses.replace(self, after=self.after[:calls], outputs=self.outputs[:calls])

    @property
    def written(self) -> set[str]:
        """The paths that the calls change."""
        steps = zip((self.start, *self.after), self.after, strict=False)
        return {path for before, now in steps for path in changed(before, now)}


def called(program: Program, model: Any) -> Reference:
    """Calls `model` with every batch, without any other transformation, and records its values after each call."""
    start, after, outputs, began = snapshot(model), [], [], 0.0
    for batch in program.batches:
        began = time.process_time()
        outputs.append(jax.tree.map(np.asarray, jax.block_until_ready(program.plain_call(model, batch))))
        after.append(snapshot(model))
    return Reference(start, tuple(after), outputs, last_seconds=time.process_time() - began)


def with_noise(program: Program, reference: Reference) -> Reference:
    """Returns the reference with its noisy values marked. Only a training step is examined."""
    if program.is_own_call:
        return reference
    batches = tuple(tuple(_nudged(x) for x in batch) for batch in program.batches)
    try:
        other = called(dataclasses.replace(program, batches=batches), program.new_model())
    except Exception:  # the program rejects perturbed inputs
        return reference
    return dataclasses.replace(
        reference,
        noisy=frozenset(found.path for found in differences(reference.start, reference.end, other.end)),
        has_noisy_outputs=not outputs_agree(reference.outputs, other.outputs),
    )


def _nudged(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x * jnp.asarray(1 + 8 * float(jnp.finfo(x.dtype).eps), x.dtype)


def outputs_agree(expected: Outputs, got: Outputs) -> bool:
    """Returns whether two runs have the same outputs, call by call, except for rounding."""
    return all(
        len(a) == len(b) and all(arrays_agree(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(expected, got, strict=True)
    )
