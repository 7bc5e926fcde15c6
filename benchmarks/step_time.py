# SPDX-License-Identifier: Apache-2.0
"""Group `step-time`: how the time of a step grows with the number of counts in it, by what keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import _reference_step as ref
from benchmarks._timing import Case, Group, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, NNX_JIT, EQUINOX = "tallax.compile_step", "nnx.jit", "eqx.nn.State, eqx.filter_jit"


def group(numbers: Sequence[int] = (0, 1, 10, 100, 1000)) -> Group:
    """Returns the cases: each way with each number of counts, all fed from one vector."""
    ways: dict[str, tuple[Callable[[int], Callable[[], Any]], str | None]] = {
        NNX_JIT: (lambda number: _with_variables(ref.by_nnx_jit, number), None),
        "nnx.jit_partial": (lambda number: _with_variables(ref.by_jit_partial, number), None),
        "nnx.split once, jax.jit": (lambda number: _with_variables(ref.by_hand, number), None),
        EQUINOX: (_equinox, "equinox"),
        OURS: (_ours, None),
    }
    most = numbers[-1]
    return Group(
        "step-time",
        "counts kept by a step of a 64-256-10 MLP with Adam, batch 128; plain Variables but for the last two ways",
        _name(OURS, numbers[0]),
        [
            Case(
                name=_name(way, number),
                make=lambda make=make, number=number: make(number),
                needs=needs,
                versus={_name(NNX_JIT, most): 1 / 25} if (way, number) == (OURS, most) else {},
            )
            for way, (make, needs) in ways.items()
            for number in numbers
        ],
        draw=draw,
    )


def draw(results: Sequence[Result]) -> Figure:
    """Returns a figure of the medians, a line for each way, named at its end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    series: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        if result.seconds is not None:
            way, number = result.case.name.rsplit(", ", 1)
            series.setdefault(way, []).append((int(number), 1e3 * result.seconds.median))
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.5, 4.0), layout="constrained")
        axes = figure.subplots()
        for (way, points), height in zip(series.items(), _apart([p[-1][1] for p in series.values()]), strict=True):
            color, width = ("#3b6ea8", 2.6) if way == OURS else ("#8a8a8a", 1.3)
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width, marker="o", markersize=3.5)
            axes.annotate(way, (points[-1][0], height), (9, 0), textcoords="offset points", va="center", color=color)
        axes.set(xlabel="counts in the model", ylabel="a step (ms)", yscale="log")
        axes.set_title("What a step takes, by what keeps its counts", loc="left", weight="bold")
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)  # since there is a zero
        axes.set_xlim(-0.25, points[-1][0] * 1.1)
        axes.set_xticks([x for x, _ in points], [f"{x}" for x, _ in points])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(axis="y", alpha=0.25)
    return figure


def _apart(heights: list[float], factor: float = 1.32) -> list[float]:
    """Returns where labels go on a logarithmic axis so that none covers another: each as low as it can be."""
    placed, below = dict.fromkeys(range(len(heights)), 0.0), 0.0
    for k in sorted(placed, key=heights.__getitem__):
        below = placed[k] = max(heights[k], below * factor)
    return list(placed.values())


def _name(way: str, number: int) -> str:
    return f"{way}, {number}"


def _with_variables(way: Callable[..., Callable[[], Any]], number: int) -> Callable[[], Any]:
    return way(ref.objects(lambda: ref.Variables(number)), ref.batch(number), ref.new_train_step())


def _ours(number: int) -> Callable[[], Any]:
    return ref.by_compile_step(ref.objects(lambda: ref.Counters(number)), ref.batch(number))


def _equinox(number: int) -> Callable[[], Any]:
    """Returns a call of the step as Equinox has it: model, optimizer and State go in, donated, and come out."""
    import equinox as eqx

    class Network(eqx.Module):
        hidden: Any
        logits: Any
        counts: list[Any]

        def __init__(self):
            key, other = jax.random.split(jax.random.key(0))
            self.hidden = eqx.nn.Linear(ref.FEATURES, ref.WIDTH, key=key)
            self.logits = eqx.nn.Linear(ref.WIDTH, ref.CLASSES, key=other)
            self.counts = [eqx.nn.StateIndex(jnp.zeros((), jnp.uint32)) for _ in range(number)]

        def __call__(self, x: jax.Array, v: jax.Array, state: Any) -> Any:
            for k, count in enumerate(self.counts):
                state = state.set(count, state.get(count) + v[k])
            return jax.vmap(self.logits)(nnx.relu(jax.vmap(self.hidden)(x))), state

    def loss_fn(model: Network, state: Any, x: jax.Array, y: jax.Array, v: jax.Array) -> Any:
        logits, state = model(x, v, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @eqx.filter_jit(donate="all-except-first")
    def compiled(batch: Any, model: Network, state: Any, moments: Any) -> Any:
        (loss, state), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model, state, *batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = adam.update(grads, moments)
        return loss, eqx.apply_updates(model, updates), state, moments

    model, state = eqx.nn.make_with_state(Network)()
    adam, batch = optax.adam(1e-3), ref.batch(number)
    moments = adam.init(eqx.filter(model, eqx.is_inexact_array))

    def run() -> Any:
        nonlocal model, state, moments
        loss, model, state, moments = compiled(batch, model, state, moments)
        return jax.block_until_ready(loss)

    return run
