# SPDX-License-Identifier: Apache-2.0
"""Group `statistics`: feeding 2**20 values to a statistic, beside computing the same without keeping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tallax
from benchmarks._timing import Case, Group

VALUES = 2**20
LOW, HIGH, BINS = -5.0, 5.0, 64

SUM = "x.sum(), jax.jit"
HISTOGRAM = "Histogram.update, split and merge"
BOOST = "boost_histogram fill"
JNP_HISTOGRAM = "jnp.histogram, jax.jit"
FLOAT_MEAN = "(x > 0).mean(), jax.jit"
MASK_MEAN = "mask.mean(), jax.jit"


def group() -> Group:
    """Returns the cases. A statistic is threaded through the step in both ways that users do it."""
    return Group(
        "statistics", "2**20 float32, or a mask of as many", JNP_HISTOGRAM, [*_values_in(), *_rates()], one_call=True
    )


def _values_in() -> list[Case]:
    def histogram() -> tallax.statistics.Histogram:
        return tallax.statistics.Histogram(LOW, HIGH, BINS)

    return [
        Case(name=SUM, make=lambda: _bound(jax.jit(jnp.sum), _values()), wait=jax.block_until_ready, reference=SUM),
        Case(
            name="Moments.update, split and merge",
            make=lambda: _split_and_merge(tallax.statistics.Moments(), _update, _values()),
            wait=jax.block_until_ready,
            reference=SUM,
            limit=3.0,
        ),
        *(
            Case(
                name=f"{kind.__name__}.update, split and merge",
                make=lambda kind=kind, arguments=arguments: _split_and_merge(kind(*arguments), _update, _values()),
                wait=jax.block_until_ready,
                reference=SUM,
            )
            for kind, arguments in ((tallax.statistics.Extrema, ()), (tallax.statistics.Ema, (0.99,)))
        ),
        Case(name=JNP_HISTOGRAM, make=_jnp_histogram, wait=jax.block_until_ready),
        Case(name="numpy.histogram", make=_numpy_histogram),
        Case(name=BOOST, make=_boost_fill, needs="boost_histogram"),
        Case(
            name=HISTOGRAM,
            make=lambda: _split_and_merge(histogram(), _update, _values()),
            wait=jax.block_until_ready,
            limit=0.10,
            versus={BOOST: 0.40},
        ),
        Case(
            name="Histogram.update, uneven edges",
            make=lambda: _split_and_merge(tallax.statistics.Histogram(LOW, HIGH, 60), _update, _values()),
            wait=jax.block_until_ready,
            versus={BOOST: None},
        ),
        Case(
            name="LogHistogram.update, split and merge",
            make=lambda: _split_and_merge(tallax.statistics.LogHistogram(), _update, _values()),
            wait=jax.block_until_ready,
            reference=HISTOGRAM,
            limit=1.5,
        ),
        Case(
            name="Histogram.update, nnx.jit",
            make=lambda: _nnx_jit(histogram(), _update, _values()),
            wait=jax.block_until_ready,
        ),
    ]


def _rates() -> list[Case]:
    def case(name: str, thread: Callable[..., Any], update: Callable[..., Any], reference: str) -> Case:
        values = _mask if reference == MASK_MEAN else _values
        return Case(
            name=name,
            make=lambda: thread(tallax.statistics.Rate(), update, values()),
            wait=jax.block_until_ready,
            reference=reference,
        )

    return [
        Case(
            name=FLOAT_MEAN,
            make=lambda: _bound(jax.jit(lambda x: (x > 0).mean()), _values()),
            wait=jax.block_until_ready,
            reference=FLOAT_MEAN,
        ),
        case("Rate.update(x > 0), split and merge", _split_and_merge, _update_positive, FLOAT_MEAN),
        case("Rate.update(x > 0), nnx.jit", _nnx_jit, _update_positive, FLOAT_MEAN),
        Case(
            name=MASK_MEAN,
            make=lambda: _bound(jax.jit(jnp.mean), _mask()),
            wait=jax.block_until_ready,
            reference=MASK_MEAN,
        ),
        case("Rate.update(mask), split and merge", _split_and_merge, _update, MASK_MEAN),
        case("Rate.update(mask), nnx.jit", _nnx_jit, _update, MASK_MEAN),
    ]


def _on_host() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(VALUES, np.float32)


def _values() -> jax.Array:
    return jax.block_until_ready(jnp.asarray(_on_host()))


def _mask() -> jax.Array:
    return jax.block_until_ready(_values() > 0)


def _update(statistic: tallax.statistics.Statistic, x: jax.Array) -> None:
    statistic.update(x)


def _update_positive(statistic: tallax.statistics.Statistic, x: jax.Array) -> None:
    statistic.update(x > 0)


def _bound(function: Callable[[Any], Any], x: jax.Array) -> Callable[[], Any]:
    return lambda: function(x)


def _split_and_merge(
    statistic: tallax.statistics.Statistic,
    update: Callable[[tallax.statistics.Statistic, jax.Array], None],
    x: jax.Array,
) -> Callable[[], Any]:
    """Returns a step that carries the state itself, so that next to nothing but the arithmetic is timed."""
    graphdef, state = nnx.split(statistic)

    @jax.jit
    def step(state: Any, x: jax.Array) -> Any:
        merged = nnx.merge(graphdef, state)
        update(merged, x)
        return nnx.state(merged)

    def run() -> Any:
        nonlocal state
        state = step(state, x)
        return state

    return run


def _nnx_jit(
    statistic: tallax.statistics.Histogram | tallax.statistics.Rate,
    update: Callable[[tallax.statistics.Statistic, jax.Array], None],
    x: jax.Array,
) -> Callable[[], Any]:
    """Returns a step as most users write it, Flax's traversal of the module included."""
    compiled = nnx.jit(update)

    def run() -> Any:
        compiled(statistic, x)
        return statistic.counts.get_raw_value()  # to be waited for; `nnx.state` would be timed with it

    return run


def _jnp_histogram() -> Callable[[], Any]:
    edges = jnp.linspace(LOW, HIGH, BINS + 1)
    x = _values()
    compiled = jax.jit(lambda x, edges: jnp.histogram(x, edges)[0])  # closed over, the edges would cost it a fifth more
    return lambda: compiled(x, edges)


def _numpy_histogram() -> Callable[[], Any]:
    x = _on_host()  # a number of bins and a range, since given edges would make it search instead of compute
    return lambda: np.histogram(x, BINS, (LOW, HIGH))


def _boost_fill() -> Callable[[], Any]:
    import boost_histogram

    x = _on_host()
    histogram = boost_histogram.Histogram(boost_histogram.axis.Regular(BINS, LOW, HIGH))
    return lambda: histogram.fill(x)
