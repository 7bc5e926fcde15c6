# SPDX-License-Identifier: Apache-2.0
"""The registries that the tests cross: items, transformations, modes, and uses that go wrong. A new one is a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tallax
from tallax.checking import _transformations as package
from tallax.checking._transformations import GRAPH, NO_UPDATES, RAW, TREE, Mode
from tests import misuses
from tests.transformations import MORE, NNX


class Model(nnx.Module):
    """A layer that is trained, and an item that is not."""

    def __init__(self, make_item: Callable[[], Any]):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.item = make_item()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


@dataclass(frozen=True)
class StateCase:
    """A kind of state: how it is made, updated by a step, and read."""

    make: Callable[[], Any]
    touch: Callable[[Model, jax.Array], Any]
    read: Callable[[Any], Any]


def _increment(model: Model, x: jax.Array) -> None:
    model.item += 1


def _count(model: Model, x: jax.Array) -> None:
    model.item.count(x > 0)


def _add_mean(model: Model, x: jax.Array) -> None:
    model.item += x.mean(0)


def _fill(model: Model, x: jax.Array) -> None:
    model.item[...] = model.item[...] * 2.0 + 1.0


def cooling(count: Any) -> jax.Array:
    """A schedule that pickles, as optax's closures do not."""
    return 5.0 - 0.4 * jnp.asarray(count, jnp.float32)


STATE_CASES = {
    "counter": StateCase(tallax.Counter, _increment, int),
    "counter-vector": StateCase(lambda: tallax.Counter(shape=3), _count, np.asarray),
    "buffer": StateCase(lambda: tallax.Buffer(np.zeros(3)), _add_mean, lambda item: np.asarray(item[...])),
    "buffer-scalar": StateCase(lambda: tallax.Buffer(1.0), _fill, lambda item: float(item[...])),
    "step-counter": StateCase(
        lambda: tallax.StepCounter(nnx.Rngs(0)), lambda model, x: model.item(), lambda item: int(item.step)
    ),
    "scheduled": StateCase(
        lambda: tallax.ScheduledValue(cooling),
        lambda model, x: model.item(jnp.int32(4)),
        lambda item: float(item.value),
    ),
    "rate": StateCase(
        tallax.statistics.Rate, lambda model, x: model.item.update(x > 0), lambda item: item.compute().fired
    ),
    "histogram": StateCase(
        lambda: tallax.statistics.Histogram(-2.0, 2.0, bins=7),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().counts,
    ),
    "log-histogram": StateCase(
        lambda: tallax.statistics.LogHistogram(0.5),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().buckets,
    ),
    "extrema": StateCase(
        lambda: tallax.statistics.Extrema(shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().max_at,
    ),
    "ema": StateCase(
        lambda: tallax.statistics.Ema(0.9, shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().value,
    ),
    "activity": StateCase(
        lambda: tallax.statistics.Activity(3, window=2),
        lambda model, x: model.item.update(x > 0.5, where=x < 1),
        lambda item: item.compute().rates,
    ),
    "moments": StateCase(
        lambda: tallax.statistics.Moments(shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().kurtosis,
    ),
}


# Every way to read state inside a compiled function. The step counter and the ScheduledValue come under the names of
# the methods that a model calls, and count; a model that only reads does not touch.
READS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "counter": (
        lambda item: item.value,
        lambda item: item[...],
        lambda item: item._peek(),
        lambda item: (item + 1, 2 * item, -item, item // 2, item % 2),
        lambda item: item.every(2),
        lambda item: (item == 1, item != 1, item == jnp.int32(1), item == item, item.value > 1),
        lambda item: (jnp.asarray(item), jnp.where(item == 1, 2.0, 3.0), jnp.minimum(item, 1)),
    ),
    "counter-vector": (
        lambda item: (item.value, item[1], item[:2], item.shape, item.ndim),
        lambda item: item.every(2),
        lambda item: (item == np.arange(3), item == 2, item == item),
        lambda item: (item.sum(), item.astype(jnp.float32), item / 2),
    ),
    "buffer": (
        lambda item: (item.value, item[...], item[1], item.get_value(index=0)),
        lambda item: (item + 1, 2.0 * item, item @ jnp.ones(3), item.value > 0.5, item == item.value),
        lambda item: (item.sum(), jnp.tanh(item), len(item), list(item)),
    ),
    "buffer-scalar": (lambda item: item[...], lambda item: item * 2.0),
    "step-counter": (lambda item: item.step.value, lambda item: item.step._peek()),
    "scheduled": (lambda item: item.value, lambda item: item(), lambda item: item.schedule(item.state[0])),
}


def read(name: str, item: Any) -> list[jax.Array]:
    """Returns all numbers that an item's reads give, as arrays."""
    ways = READS.get(name, (lambda item: item.compute(),))
    values = [way(item) for way in ways], tallax.snapshot(nnx.Dict(item=item))
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(values)]


def _split_merge(f: Callable[..., Any]) -> Callable[..., Any]:
    def call(model: Any, *args: Any) -> Any:
        graphdef, state = nnx.split(model)
        out, state = compiled(graphdef, state, *args)
        nnx.update(model, state)
        return out

    def pure(graphdef: Any, state: Any, *args: Any) -> Any:
        model = nnx.merge(graphdef, state)
        out = f(model, *args)
        return out, nnx.state(model)

    compiled = jax.jit(pure, static_argnums=0)
    return call


# Each compiles a function of a model, and leaves the model updated when it is called.
MODES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "graph": nnx.jit,
    "graph-no-updates": lambda f: nnx.jit(f, graph=True, graph_updates=False),
    "tree": lambda f: nnx.jit(f, graph=False),
    "split-merge": _split_merge,
}


def leaves(node: Any) -> list[np.ndarray]:
    """Returns every array that a module or Variable holds, on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(nnx.Dict(node=node))))]


def assert_same_state(left: Any, right: Any) -> None:
    """Asserts that two modules or Variables are the same to the bit."""
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    assert pairs
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes(), (a, b)


def batch(seed: int = 0, size: int = 8) -> jax.Array:
    """Returns float32[size, 3] with both signs in every column."""
    x = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    assert (x > 0).any(0).all()
    assert (x < 0).any(0).all()
    return jnp.asarray(x)


# --- the matrix -------------------------------------------------------------------------------------------------------

TRANSFORMATIONS = (*package.TRANSFORMATIONS, *MORE)


class Everything(nnx.Module):
    """A layer, and every item, so that one compilation tells about all of them."""

    def __init__(self, names: Iterable[str] = tuple(STATE_CASES)):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.parts = nnx.Dict({name: nnx.Dict(item=STATE_CASES[name].make()) for name in names})

    def __call__(self, x: jax.Array) -> jax.Array:
        for name, part in self.parts.items():
            STATE_CASES[name].touch(part, x)
        return self.layer(x)


class Reader(Everything):
    """Reads every item before and after it is touched; its outputs are what was read."""

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        before = [read(name, self.parts[name].item) for name in sorted(self.parts)]
        logits = super().__call__(x)
        after = [read(name, self.parts[name].item) for name in sorted(self.parts)]
        return tuple(jax.tree.leaves((logits, before, after)))


def call_reader(model: Reader, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Calls a model that reads as the matrix calls one that does not."""
    return model(*inputs)


def call(model: Everything, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Calls a model as the matrix does."""
    return (model(*inputs),)


# Where tallax raises, for every item: `transform(f, x)` calls an f that writes to the item of a model it closes over.
CAPTURED = {
    **{name: (transform, NNX) for name, transform in misuses.CAPTURED_BY_NNX.items()},
    **{name: (transform, (NO_UPDATES, TREE)) for name, transform in misuses.CAPTURED_BY_NNX_DERIVATIVES.items()},
    **{name: (transform, (RAW,)) for name, transform in misuses.CAPTURED_BY_JAX.items()},
}


@dataclass(frozen=True)
class Refused:
    """A use that Flax or JAX refuses before an item could, in words of their own; `says` is among them.

    `use` is left out where it is the transformation of the same name, in modes that are none of its own.
    """

    name: str
    modes: tuple[Mode, ...]
    error: type[Exception]
    says: str
    use: Callable[..., Any] | None = None
    names: tuple[str, ...] = tuple(STATE_CASES)

    @property
    def run(self) -> Callable[..., Any]:
        """The use, in the form of a run."""
        return self.use or named(self.name)


def named(name: str) -> Callable[..., Any]:
    """Returns the NNX form of a transformation."""
    return next(t.nnx for t in TRANSFORMATIONS if t.name == name and t.nnx)


# These add the same to whatever comes in, so the lanes of a vmap can't be told apart; others differ from lane to lane.
CONSTANT = ("counter", "step-counter")
BY_DATA = tuple(name for name in STATE_CASES if name not in (*CONSTANT, "buffer-scalar", "scheduled"))

_NO_DERIVATIVE = "graph-mode with graph_updates is not supported for nnx"
_NO_INTEGERS = "but got uint32"

REFUSED = (
    Refused("jit_partial", (GRAPH,), ValueError, "`graph_updates` not supported by `jit_partial`"),
    Refused("cached_partial", (NO_UPDATES, TREE), ValueError, "cached_partial is a graph-mode-only API"),
    Refused("nnx.value_and_grad", (NO_UPDATES, TREE), TypeError, _NO_INTEGERS),
    Refused("nnx.grad", (NO_UPDATES, TREE), TypeError, _NO_INTEGERS),
    Refused("vjp", (GRAPH,), NotImplementedError, f"{_NO_DERIVATIVE}.vjp"),
    Refused("jvp", (GRAPH,), NotImplementedError, f"{_NO_DERIVATIVE}.jvp"),
    Refused(
        "scan, parameters broadcast, state carried",
        (NO_UPDATES, TREE),
        ValueError,
        "`in_axes` cannot contain `StateAxes` objects",
    ),
    Refused(
        "vmap, broadcast: updates by data",
        NNX,
        ValueError,
        "output was batched",
        misuses.vmap_broadcast_in_jit,
        BY_DATA,
    ),
    Refused("jax.grad of the model", (RAW,), TypeError, _NO_INTEGERS, misuses.jax_grad),
    Refused(
        "one Variable under two names",
        (NO_UPDATES, TREE),
        ValueError,
        "Duplicate",
        misuses.under_two_names(nnx.jit),
    ),
)


@dataclass(frozen=True)
class Silent:
    """A use that nothing within the model can see going wrong.

    Attributes:
        use: how the page calls it.
        run: the use, in the form of a run.
        modes: those in which it goes wrong.
        happens: what becomes of the updates of three calls: `lost`, `once a call`, `frozen`, or `a copy each`.
        says: the rule by which statecheck reports a model that uses its own part so.
        warns: whether it only warns.
        instead: what to write.
        names: the items that it happens to.
    """

    use: str
    run: Callable[..., Any]
    modes: tuple[Mode, ...]
    happens: str
    says: str
    instead: str
    warns: bool = False
    names: tuple[str, ...] = tuple(STATE_CASES)


_RETURN = "the `nnx` one; or split, and return `nnx.state(model)`"

CANNOT_KNOW = {
    "scan": Silent(
        "`nnx.scan(..., in_axes=(None, 0))`: the module broadcast",
        named("scan, broadcast"),
        (GRAPH,),
        "lost",
        "lost-update",
        "`in_axes=(nnx.Carry, 0)`",
    ),
    "scan-state-axes": Silent(
        "`nnx.scan` with `nnx.StateAxes({...: None})`",
        misuses.scan_state_axes,
        (GRAPH,),
        "lost",
        "lost-update",
        "`nnx.StateAxes({nnx.Param: None, ...: nnx.Carry})`",
    ),
    "vmap": Silent(
        "`nnx.vmap(..., in_axes=(None, 0))`: a constant increment of a module broadcast",
        misuses.vmap_broadcast,
        NNX,
        "once a call",
        "lost-update",
        "`increment(..., axis_name=...)`, or a stacked module and `in_axes=0`",
        warns=True,
        names=CONSTANT,
    ),
    "while-condition": Silent(
        "`nnx.while_loop`: written in the condition",
        misuses.while_condition,
        NNX,
        "lost",
        "lost-update",
        "write in the body",
    ),
    "clone": Silent(
        "`nnx.clone(model)(x)`",
        misuses.a_copy,
        NNX,
        "lost",
        "lost-update",
        "call the model; or `nnx.update(model, nnx.state(copy))`",
    ),
    "jax-jit": Silent("`jax.jit(f)(model, x)`", misuses.jax_jit, (RAW,), "lost", "lost-update", _RETURN),
    "jax-checkpoint": Silent(
        "`jax.checkpoint(f)(model, x)`", misuses.jax_checkpoint, (RAW,), "lost", "lost-update", _RETURN
    ),
    "jax-vmap": Silent(
        "`jax.vmap(f, in_axes=(None, 0))(model, x)`", misuses.jax_vmap, (RAW,), "lost", "lost-update", _RETURN
    ),
    "jax-cond": Silent("`jax.lax.cond(p, f, g, model, x)`", misuses.jax_cond, (RAW,), "lost", "lost-update", _RETURN),
    "jax-switch": Silent(
        "`jax.lax.switch(k, fs, model, x)`", misuses.jax_switch, (RAW,), "lost", "lost-update", _RETURN
    ),
    "jax-scan": Silent(
        "`jax.lax.scan(f, model, xs)[1]`: the carry dropped", misuses.jax_scan, (RAW,), "lost", "lost-update", _RETURN
    ),
    "jax-grad": Silent(
        "`jax.grad(f, allow_int=True)(model, x)`",
        misuses.jax_grad_allow_int,
        (RAW,),
        "lost",
        "lost-update",
        "`tallax.value_and_grad(f)(model, x)`",
    ),
    "custom-vjp": Silent(
        "`custom_vjp`: a forward rule that leaves the update out",
        misuses.forward_rule_forgets,
        NNX,
        "lost",
        "lost-update",
        "call the function itself in its forward rule",
    ),
    "two-names": Silent(
        "`jax.jit` that returns a model with one Variable under two names",
        misuses.under_two_names(jax.jit),
        (RAW,),
        "a copy each",
        "shared-variable",
        "store it once; or split, and return `nnx.state(model)`",
        warns=True,
        names=("counter", "buffer", "rate"),
    ),
    "closure": Silent(
        "`jax.jit(lambda x: x / model.temperature.value)`: a read through a closure",
        misuses.closure_read,
        (RAW,),
        "frozen",
        "frozen-value",
        "make the model an argument",
    ),
}


# --- what docs/state-under-transformations.md shows of it -------------------------------------------------------------


def matrix_table() -> list[str]:
    """Returns the table of transformations and modes, in Markdown."""
    rows: dict[str, dict[Mode, str]] = {}
    for transformation in TRANSFORMATIONS:
        right = "counts" if transformation.executes else "counts nothing"
        row = rows.setdefault(transformation.name, {})
        row |= {mode: right for mode in package.MODES if transformation.run_in(mode)}
    for refused in REFUSED:
        rows.setdefault(refused.name, {}).update(dict.fromkeys(refused.modes, f"`{refused.error.__name__}`"))
    silent = CANNOT_KNOW["scan"]
    rows["scan, broadcast"] |= dict.fromkeys(silent.modes, f"**{silent.happens}**")
    rows["a model closed over, and written"] = dict.fromkeys(package.MODES, "`tallax.TraceError`")
    head = ["transformation", *(mode.name for mode in package.MODES)]
    body = [[name, *(row.get(mode, "") for mode in package.MODES)] for name, row in rows.items()]
    return _table([head, *body])


def silent_table() -> list[str]:
    """Returns the table of uses that can't be known, in Markdown."""
    head = ["use", "modes", "what is written", "statecheck", "write instead"]
    body = [
        [
            silent.use,
            "all" if silent.modes == NNX else ", ".join("plain `jax`" if m is RAW else m.name for m in silent.modes),
            silent.happens,
            f"`{silent.says}`{' (a warning)' if silent.warns else ''}",
            silent.instead,
        ]
        for silent in CANNOT_KNOW.values()
    ]
    return _table([head, *body])


def _table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |") for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
