# SPDX-License-Identifier: Apache-2.0
"""The statistics of the presets, and the records that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax.statistics._statistic import unboxed
from tallax.watching._params import UPDATE_RATIO
from tallax.watching._step_statistic import ChannelNumbers, StepStatistic


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DeadUnitsResult:
    """The units of a layer that never fired; arrays with one more axis in front if the module is a stack.

    Attributes:
        dead: The number of units that never fired; 0 if nothing was looked at.
        share: This number over the number of units.
        rates: float[units]: the share of its outputs in which each unit fired.
        entries: The number of outputs of each unit that were looked at.
    """

    dead: Any
    share: Any
    rates: Any
    entries: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MassiveActivationsResult:
    """The largest magnitude of a tensor, in units of its RMS; arrays if the module is a stack.

    Attributes:
        ratio: `largest` over `rms`; 0.0 if nothing was looked at.
        largest: The largest magnitude of all steps.
        largest_at: The update at which it came.
        rms: The root mean square of all entries of all steps.
        entries: The number of entries that were looked at.
    """

    ratio: Any
    largest: Any
    largest_at: Any
    rms: Any
    entries: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AttentionResult:
    """The logits and the entropy of each head; arrays with one more axis in front if the module is a stack.

    Attributes:
        largest_logit: float[heads]: the largest logit that is not masked, after the scale and the bias.
        largest_at: uint64[heads]: the update at which it came.
        entropy: float[heads]: the mean entropy of the attention weights of a query, in nats.
        queries: uint64[heads]: the number of queries; those that may attend to nothing are left out.
    """

    largest_logit: Any
    largest_at: Any
    entropy: Any
    queries: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ExpertLoadResult:
    """The tokens of each expert; arrays with one more axis in front if the module is a stack.

    Attributes:
        tokens: uint64[experts]: the number of tokens that were sent to each expert.
        load: float[experts]: their share of all; zeros without tokens.
        imbalance: The largest load over the mean load: 1.0 if all experts have as many tokens, 0.0 without tokens.
        idle: The number of experts without a token; 0 if no expert has one.
    """

    tokens: Any
    load: Any
    imbalance: Any
    idle: Any


class DeadUnits(StepStatistic):
    """Counts the outputs of each unit that are above a threshold."""

    counts: ClassVar[int] = 2  # entries, and those that fired

    def __init__(self, units: int, threshold: float, **options: Any):
        super().__init__(units, **options)
        self.threshold = threshold

    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        return _with_channels(leaves, self.channels, "units")

    def reduce(self, *arrays: Any) -> ChannelNumbers:
        (x,) = arrays
        axes = tuple(range(x.ndim - 1))
        fired = _uint64.total(x > self.threshold, axes)
        entries = jnp.broadcast_to(_uint64.from_int(math.prod(x.shape[:-1])), fired.shape)
        return ChannelNumbers(jnp.stack([entries, fired], -2), _empty(fired), _empty(fired))

    def read(self, state: Mapping[str, Any]) -> DeadUnitsResult:
        counts = self.totals(state).counts
        xp: Any = jnp if isinstance(counts, jax.Array) else np
        entries, fired = counts[..., 0], counts[..., 1]
        dead = ((fired == 0) & (entries > 0)).sum(-1)
        rates = fired / xp.maximum(entries, 1)
        return DeadUnitsResult(*unboxed(dead, dead / self.channels, rates, entries.max(-1)))


class MassiveActivations(StepStatistic):
    """Keeps the largest magnitude and the sum of squares of a tensor."""

    sums: ClassVar[int] = 1
    has_largest: ClassVar[bool] = True

    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        return [(x,) for x in leaves if _is_float(x)] or "no arrays of floating-point numbers"

    def batch_axes(self, x: Any) -> int:
        return x.ndim

    def reduce(self, *arrays: Any) -> ChannelNumbers:
        x = jnp.abs(arrays[0]).astype(jnp.float32)
        return _only_finite(x.size, (x * x).sum()[None], x.max())

    def read(self, state: Mapping[str, Any]) -> MassiveActivationsResult:
        totals = self.totals(state)
        xp: Any = jnp if isinstance(totals.counts, jax.Array) else np
        entries, largest, at = totals.counts[..., 0, 0], totals.largest[..., 0], totals.at[..., 0]
        squares = totals.sums[..., 0, 0]
        rms = xp.sqrt(squares / xp.maximum(entries, 1).astype(squares.dtype))
        ratio = largest / xp.where(rms > 0, rms, 1.0)
        return MassiveActivationsResult(*unboxed(ratio, largest, at, rms, entries))


class Attention(StepStatistic):
    """Keeps the largest logit and the entropy of each head, from the arguments of an attention function."""

    source: ClassVar[str] = "attention"
    sums: ClassVar[int] = 1
    has_largest: ClassVar[bool] = True

    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        args, kwargs = leaves
        try:
            arrays = _for_logits(*args, **kwargs)
            found = jax.eval_shape(self.reduce, *arrays).counts.shape
        except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
            return "its attention function was not called like nnx.dot_product_attention, with (query, key, value, ...)"
        if found != (self.channels, 1, 2):
            return f"its queries have the shape {arrays[0].shape}, not (..., length, {self.channels} heads, depth)"
        return [arrays]

    def batch_axes(self, x: Any) -> int:
        return x.ndim - 3

    def reduce(self, *arrays: Any) -> ChannelNumbers:
        query, key, bias, mask = arrays
        repeats = query.shape[-2] // key.shape[-2]
        key = jnp.repeat(key, repeats, -2) if repeats > 1 else key
        logits = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=jnp.float32)
        logits = logits.astype(jnp.float32) / math.sqrt(query.shape[-1])
        logits = logits if bias is None else logits + bias.astype(jnp.float32)
        logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
        top = logits.max(-1)
        seen = top > -jnp.inf  # a query that may attend to nothing has no weights
        above = logits - jnp.where(seen, top, 0.0)[..., None]
        weights = jnp.exp(above)
        total = weights.sum(-1)
        entropy = jnp.log(total) - jnp.where(weights > 0, weights * above, 0.0).sum(-1) / total
        axes = tuple(axis for axis in range(top.ndim) if axis != top.ndim - 2)
        sums = jnp.where(seen, entropy, 0.0).sum(axes)
        finite = jnp.isfinite(sums)
        queries = jnp.where(finite[:, None], _uint64.total(seen, axes), jnp.uint32(0))
        return ChannelNumbers(queries[:, None], jnp.where(finite, sums, 0.0)[:, None], top.max(axes)[:, None])

    def read(self, state: Mapping[str, Any]) -> AttentionResult:
        totals = self.totals(state)
        xp: Any = jnp if isinstance(totals.counts, jax.Array) else np
        queries, entropy = totals.counts[..., 0], totals.sums[..., 0]
        mean = entropy / xp.maximum(queries, 1).astype(entropy.dtype)
        return AttentionResult(totals.largest, totals.at, mean, queries)


def _for_logits(
    query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, *_: Any, **others: Any
) -> tuple[Any, ...]:
    """Returns query, key, bias and mask of a call like that of `nnx.dot_product_attention`, all of one rank."""
    del value
    if others.get("scale") is not None:
        query = query * (others["scale"] * math.sqrt(query.shape[-1]))
    mask = None if mask is None else mask.astype(jnp.bool_)
    if others.get("is_causal", False):
        allowed = jnp.tril(jnp.ones((query.shape[-3], key.shape[-3]), jnp.bool_))
        mask = allowed if mask is None else _of_rank(allowed, mask.ndim) & mask
    return query, key, *(None if x is None else _of_rank(x, query.ndim) for x in (bias, mask))


def _of_rank(x: Any, rank: int) -> jax.Array:
    """Returns an array with axes of size 1 in front."""
    return jnp.reshape(x, (1,) * (rank - jnp.ndim(x)) + jnp.shape(x))


class ExpertLoad(StepStatistic):
    """Counts the tokens that a router sends to each expert."""

    def __init__(self, experts: int, top_k: int, **options: Any):
        super().__init__(experts, **options)
        self.top_k = top_k

    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        indices = [(x,) for x in leaves if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.integer)]
        return indices or _with_channels(leaves, self.channels, "experts")

    def batch_axes(self, x: Any) -> int:
        return x.ndim if jnp.issubdtype(x.dtype, jnp.integer) else x.ndim - 1

    def reduce(self, *arrays: Any) -> ChannelNumbers:
        (x,) = arrays
        if jnp.issubdtype(x.dtype, jnp.integer):
            tokens = self._tokens(x)
        else:
            tokens = jnp.zeros((self.channels, 2), jnp.uint32)
            x = jnp.maximum(x, jnp.finfo(x.dtype).min)  # a masked expert is above one that was already chosen
            for _ in range(self.top_k):  # XLA gathers a batch that is split over devices before `lax.top_k`
                best = x.argmax(-1)
                tokens = _uint64.add(tokens, self._tokens(best))
                x = jnp.where(self._is_expert(best), -jnp.inf, x)
        return ChannelNumbers(tokens[:, None], _empty(tokens), _empty(tokens))

    def _is_expert(self, indices: jax.Array) -> jax.Array:
        """Returns one-hot booleans."""
        experts = jnp.arange(self.channels, dtype=indices.dtype)
        return indices[..., None] == experts.reshape(*[1] * indices.ndim, self.channels)

    def _tokens(self, indices: jax.Array) -> jax.Array:
        return _uint64.total(self._is_expert(indices), tuple(range(indices.ndim)))

    def read(self, state: Mapping[str, Any]) -> ExpertLoadResult:
        tokens = self.totals(state).counts[..., 0]
        xp: Any = jnp if isinstance(tokens, jax.Array) else np
        total = tokens.sum(-1)
        load = tokens / xp.maximum(total, 1)[..., None]
        idle = ((tokens == 0) & (total > 0)[..., None]).sum(-1)
        return ExpertLoadResult(*unboxed(tokens, load, load.max(-1) * self.channels, idle))


class UpdateRatio(StepStatistic):
    """Adds up the squares of a parameter and of its updates. The result is the root of their ratio, as a float.

    It is infinite while a parameter is zero, as biases are before the first step, and 0.0 if nothing was looked at.
    """

    sums: ClassVar[int] = 2

    def __init__(self, spec: jax.P | None, **options: Any):
        super().__init__(1, **options)
        self.spec = spec  # the placement of the Param on a mesh, as in `Summary`

    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        return [tuple(leaves)]

    def batch_axes(self, x: Any) -> int:
        return x.ndim

    def reduce(self, *arrays: Any) -> ChannelNumbers:
        sums = jnp.stack([jnp.square(jnp.abs(x).astype(jnp.float32)).sum() for x in arrays])
        return _only_finite(arrays[0].size, sums, None)

    def read(self, state: Mapping[str, Any]) -> Any:
        sums = self.totals(state).sums[..., 0, :]
        xp: Any = jnp if isinstance(sums, jax.Array) else np
        parameter, update = sums[..., 0], sums[..., 1]
        ratio = xp.sqrt(update / xp.where(parameter > 0, parameter, 1.0))
        return unboxed(xp.where((parameter == 0) & (update > 0), xp.inf, ratio))[0]


def reader_of(kind: Any, channels: int, **options: Any) -> StepStatistic:
    """Returns a statistic that reads the state of one with this configuration, such as the state in a checkpoint."""
    if kind is UpdateRatio:
        return UpdateRatio(None, **options)
    not_read: dict[Any, tuple[Any, ...]] = {DeadUnits: (0.0,), ExpertLoad: (1,)}  # a threshold, and top_k
    return kind(channels, *not_read.get(kind, ()), **options)


# The number of each result that is 0 if nothing was looked at.
_COUNTS = {
    DeadUnitsResult: "entries",
    MassiveActivationsResult: "entries",
    AttentionResult: "queries",
    ExpertLoadResult: "tokens",
}


def is_of_preset(result: Any, role: str) -> bool:
    """Returns whether a result is that of a preset."""
    return role.endswith(f":{UPDATE_RATIO}") or type(result) in _COUNTS


def is_empty(result: Any, role: str) -> bool:
    """Returns whether the result of a preset stands for nothing that was looked at."""
    counts = result if role.endswith(f":{UPDATE_RATIO}") else getattr(result, _COUNTS[type(result)])
    return not np.any(counts)


def _only_finite(entries: int, sums: jax.Array, largest: Any) -> ChannelNumbers:
    """Returns the numbers of a single channel; all are 0 if one of them is NaN or infinite."""
    finite = jnp.isfinite(sums).all()
    count = jnp.where(finite, _uint64.full((1, 1), entries), np.uint32(0))
    top = jnp.zeros((1, 0), jnp.float32) if largest is None else largest[None, None]
    return ChannelNumbers(count, jnp.where(finite, sums, 0.0)[None], top)


def _empty(counts: jax.Array) -> jax.Array:
    """Returns no sums, or no largest value, for channels with the given counts."""
    return jnp.zeros((counts.shape[0], 0), jnp.float32)


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) and bool(np.size(x))


def _with_channels(leaves: Sequence[Any], channels: int, unit: str) -> list[tuple[Any, ...]] | str:
    """Returns the arrays of floats whose last axis is that of the channels."""
    floats = [x for x in leaves if _is_float(x) and not jnp.iscomplexobj(x)]
    found: list[tuple[Any, ...]] = [(x,) for x in floats if x.ndim and x.shape[-1] == channels]
    if found:
        return found
    if not floats:
        return "no arrays of floating-point numbers"
    return f"its output has the shape {floats[0].shape}, whose last axis is not that of {channels} {unit}"
