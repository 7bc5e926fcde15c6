# SPDX-License-Identifier: Apache-2.0
"""Cases of the corpus, their registration, the inputs that cases share, and a layer to derive from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

RULES = frozenset(
    {
        "not-reproducible",
        "shared-array",
        "lost-update",
        "counted-twice",
        "frozen-value",
        "differs",
        "retrace",
        "replaced-variable",
        "param-state",
        "eval-mode",
        "round-trip",
        "narrow-counter",
        "host-sync",
        "python-counter",
        "raises",
    }
)


@dataclass(frozen=True)
class Wrong:
    """A module whose state goes wrong.

    A check has to fail with at least one of `rules`, and that finding has to name `path` or something below it.
    `path` is None where no attribute is at fault. `is_warned` is for what a check can only warn of.
    """

    make: Callable[..., Any]
    inputs: tuple[jax.Array, ...]
    rules: frozenset[str]
    path: str | None
    call: Callable[..., Any] | None = None
    why: str = ""
    is_warned: bool = False


@dataclass(frozen=True)
class Right:
    """A module that a check must not fail. Warnings are allowed."""

    make: Callable[..., Any]
    inputs: tuple[jax.Array, ...]
    call: Callable[..., Any] | None = None
    note: str = ""


WRONG: dict[str, Wrong] = {}
ARGUABLE: dict[str, Wrong] = {}  # a check may fail these, with no other rule than theirs, or pass them
RIGHT: dict[str, Right] = {}


def _normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


BATCH = _normal(6, 4)
SEQUENCE = _normal(2, 5, 4)  # batch, time, features
IMAGES = _normal(2, 6, 6, 3)
TOKENS = jnp.asarray(np.arange(10, dtype=np.int32).reshape(2, 5) % 7)

Make = TypeVar("Make", bound=Callable[..., Any])


def _register(
    registry: dict[str, Wrong],
    name: str,
    rules: str,
    path: str | None,
    why: str,
    inputs: Any,
    call: Any,
    is_warned: bool = False,
) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        assert name not in WRONG.keys() | ARGUABLE.keys() | RIGHT.keys(), name
        found = frozenset(rules.split())
        assert found
        assert found <= RULES, found - RULES
        registry[name] = Wrong(make, tuple(inputs), found, path, call, why, is_warned)
        return make

    return add


def wrong(
    name: str,
    rules: str,
    path: str | None,
    why: str,
    *,
    inputs: Any = (BATCH,),
    call: Any = None,
    is_warned: bool = False,
) -> Any:
    """Registers a module class, or a function that makes a module, as wrong; `rules` are separated by blanks."""
    return _register(WRONG, name, rules, path, why, inputs, call, is_warned)


def arguable(name: str, rules: str, path: str | None, why: str, *, inputs: Any = (BATCH,), call: Any = None) -> Any:
    """Registers a module that a check may find wrong by one of these rules, and may find right."""
    return _register(ARGUABLE, name, rules, path, why, inputs, call)


def right(name: str, note: str = "", *, inputs: Any = (BATCH,), call: Any = None) -> Any:
    """Registers a module class, or a function that makes a module, as right."""

    def add(make: Make) -> Make:
        assert name not in WRONG.keys() | ARGUABLE.keys() | RIGHT.keys(), name
        RIGHT[name] = Right(make, tuple(inputs), call, note)
        return make

    return add


class Layer(nnx.Module):
    """Four features in, four out: something to train beside the state."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


class Counted(Layer):
    """Counts its calls: right by itself, a victim for whoever calls it wrongly."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.count[...] += 1
        return self.linear(x)


def build(case: Wrong | Right) -> Any:
    """Makes the module of a case, as a check would."""
    # A class is asked for its __init__: the signature of an nnx.Module class is that of its metaclass.
    signature = inspect.signature(case.make.__init__ if isinstance(case.make, type) else case.make)
    return case.make(rngs=nnx.Rngs(0)) if "rngs" in signature.parameters else case.make()


def run(case: Wrong | Right, model: Any) -> Any:
    """Calls the module of a case once, as a check would."""
    return (case.call or (lambda model, *inputs: model(*inputs)))(model, *case.inputs)
