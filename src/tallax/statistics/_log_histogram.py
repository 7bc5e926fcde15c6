# SPDX-License-Identifier: Apache-2.0
"""`LogHistogram`: quantiles of values of any size, with a guaranteed relative error."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._errors import InvalidValueError, describe
from tallax._mesh_axes import AxisName
from tallax.runs._bars import bars_of
from tallax.runs._record import Bins
from tallax.statistics._bincount import count_slots
from tallax.statistics._binned import Binned, BinnedResult, plot_bars
from tallax.statistics._conversions import as_number
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Counter

_MANTISSA = 23  # bits of a float32's mantissa
_SUBNORMAL = 22  # normalised subnormal numbers use one exponent more than this, below the least normal one
_EXPONENTS = 254 + _SUBNORMAL + 1
_SPECIAL = ("zero", "nan", "posinf", "neginf")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class LogHistogramResult(BinnedResult):
    """The counts of a `LogHistogram`. Counts are exact outside a trace; int32, saturated, inside one.

    If the histogram is a stack, for example one per layer made by `vmap`, each count and each result of `quantile` has
    the leading axes of the stack, and `result[k]` is the result of layer k. Printing and plotting use the sum of the
    counts of the stack.

    Attributes:
        nan: The number of NaN entries.
        buckets: The entries of each bucket in ascending order of their values, -inf first, zero in the middle, +inf
            last.
        relative_error: The largest relative error of a quantile.
        mantissa_bits: The number of bits of the mantissa that select a bucket.
    """

    _binned, _apart = "buckets", ("nan",)

    nan: Any
    buckets: Any
    relative_error: float = field(metadata={"static": True})
    mantissa_bits: int = field(metadata={"static": True})

    @property
    def count(self) -> Any:
        """The number of entries, including infinities and excluding NaN."""
        axes = (self.buckets.ndim - 1,)
        if not isinstance(self.buckets, np.ndarray):
            return _uint64.to_int32(_uint64.total(self.buckets, axes))
        return _uint64.sum_uint64(self.buckets, axes) if self.buckets.ndim > 1 else sum(self.buckets.tolist())

    @property
    def zero(self) -> Any:
        """The number of entries equal to 0.0 or -0.0."""
        return unboxed(self.buckets[..., self.buckets.shape[-1] // 2])[0]

    @property
    def bounds(self) -> np.ndarray:
        """float64[len(buckets) + 1]: the bounds of the buckets; the first and the last are infinite."""
        return _bounds(self.mantissa_bits)

    def quantile(self, q: Any) -> Any:
        """Returns the value at a quantile: of the sorted entries, the one with index `floor(q * (count - 1))`.

        Args:
            q: A number or an array of numbers in [0, 1].

        Returns:
            A value within `relative_error` of the exact quantile, or NaN if nothing was seen. Outside a trace it is
            float64 of the shape of `q`, or a Python float for a number. Inside a trace it is float32, and the rank is
            rounded to float32 too.

        Raises:
            InvalidValueError: `q` is outside [0, 1].
        """
        if self.buckets.ndim > 1:
            each = [self[k].quantile(q) for k in range(len(self.buckets))]
            return np.stack(each) if isinstance(self.buckets, np.ndarray) else jnp.stack(each)
        middles = _middles(self.bounds)
        if isinstance(self.buckets, np.ndarray):
            ranks = np.asarray(q, np.float64)
            if not np.all((ranks >= 0) & (ranks <= 1)):
                raise InvalidValueError(
                    "q",
                    "a quantile must be in [0, 1].",
                    got=describe(q),
                    fix="quantile(0.99) for the 99th percentile",
                )
            if not self.count:
                return math.nan if ranks.ndim == 0 else np.full(ranks.shape, math.nan)
            below = np.cumsum(self.buckets, dtype=np.uint64)
            numbers = np.floor(ranks * (self.count - 1)).astype(np.uint64)
            values = middles[np.searchsorted(below, numbers, side="right")]
            return float(values) if ranks.ndim == 0 else values
        below = jnp.cumsum(self.buckets.astype(jnp.float32))
        rank = jnp.floor(jnp.asarray(q, jnp.float32) * (below[-1] - 1))
        values = jnp.asarray(middles, jnp.float32)[jnp.searchsorted(below, rank, side="right", method="compare_all")]
        return jnp.where(below[-1] > 0, values, jnp.nan)

    def __repr__(self) -> str:
        if not isinstance(self.buckets, np.ndarray):
            return f"LogHistogramResult(count={self.count}, zero={self.zero}, nan={self.nan})"
        whole = self.together()
        text = bars_of(whole._finite_bins(), 36) if whole.count else ""
        middle = f", median {whole.quantile(0.5):.3g}, 99% {whole.quantile(0.99):.3g}" if whole.count else ""
        apart = f"{whole.zero:,} zeros, {whole.nan:,} NaN"
        return f"LogHistogramResult({self._shape_of_stack()}{text} {whole.count:,} values{middle}, {apart})"

    def plot(self, ax: Any = None) -> Any:
        """Draws the density over a symmetric logarithmic axis, and returns the matplotlib axes.

        The title has the counts of zeros, NaN and infinities, which are not on the axis.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        if self.buckets.ndim > 1:
            return self.together().plot(ax)
        seen = np.flatnonzero(self._per_octave())
        first, last = (seen[0], seen[-1] + 1) if seen.size else (0, 1)
        edges = self.bounds[1:-1][first : last + 1]
        apart = {"zeros": self.zero, "NaN": self.nan, "-inf": self.buckets[0], "+inf": self.buckets[-1]}
        axes = plot_bars(self._per_octave()[first:last], edges, apart, ax)
        axes.set_xscale("symlog", linthresh=np.abs(edges).min())
        axes.set_ylabel("count per octave")
        return axes

    def _finite_bins(self) -> Bins:
        return Bins(self.bounds[1:-1], self.buckets[1:-1])

    def _per_octave(self) -> np.ndarray:
        """Returns the counts of the finite buckets over their logarithmic widths; 0 for the bucket around zero."""
        size = np.abs(self.bounds[1:-1])
        octaves = np.abs(np.diff(np.log2(size)))
        octaves[len(octaves) // 2] = np.inf
        return np.asarray(self.buckets[1:-1], np.float64) / octaves


class LogHistogram(Binned):
    """Counts values of any size and sign in buckets whose width grows with the value, for quantiles.

    No range is needed: every finite float32 has a bucket, also subnormal numbers. Zero, NaN and the infinities are
    counted separately. A bucket contains the numbers with the same sign, exponent and first m bits of mantissa, so it
    is found by shifting the bits of a number, and no logarithm is computed. The estimate of a bucket with bounds a and
    b is `2ab / (a + b)`.

    Error bound: a bucket of exponent e has `a = 2**e * (1 + j / 2**m)` and `b = a + 2**(e - m)` with `0 <= j < 2**m`.
    For a <= x < b the error of the estimate relative to x is at most `(b - a) / (a + b)`, which is attained at both
    ends, and this is `1 / (2 * (2**m + j) + 1) <= 1 / (2**(m + 1) + 1)`. The least m whose bound is within
    `relative_error` is used. A subnormal number is normalised first (its mantissa, an integer below 2**23, is an exact
    float32). Its bucket has the same relative width, or contains a single number.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (554 * 2**m + 4,): positive, negative, zero, NaN, +inf, -inf | an exact `Counter` | 0 | sum |

    Memory is bounded: 8 bytes per bucket, 71 KB at the default error of 5%, 284 KB at 1%, 2.3 MB at 0.1%.

    Args:
        relative_error: The largest relative error of a quantile, in [1e-4, 0.5].
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
        persistent: Whether checkpoints save the state.

    float64 and integers are rounded to float32 first.

    Raises:
        InvalidValueError: `relative_error` is not a number in [1e-4, 0.5].

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> latency = tallax.statistics.LogHistogram(relative_error=0.01)
        >>> latency.update(jnp.array([1e-3, 2e-3, 3e-3, 5.0, 0.0]))
        >>> result = latency.compute()
        >>> result.count, result.zero, f"{result.quantile(0.5):.4f}"
        (5, 1, '0.0020')

    References:
        C. Masson, J. E. Rim, H. K. Lee, "DDSketch", VLDB 2019: the estimate and its bound, for powers of a base; G.
        Tene, HdrHistogram: buckets by exponent and leading bits, for integers.
    """

    def __init__(self, relative_error: float = 0.05, *, axis_name: AxisName | None = None, persistent: bool = True):
        super().__init__(axis_name=axis_name)
        error = as_number(relative_error)
        if error is None or not 1e-4 <= error <= 0.5:
            raise InvalidValueError(
                "LogHistogram",
                "the relative error must be in [1e-4, 0.5].",
                got=describe(relative_error),
                fix="LogHistogram(relative_error=0.01)",
            )
        self.relative_error: float = error
        self.mantissa_bits: int = next(m for m in range(_MANTISSA) if 1 / (2 ** (m + 1) + 1) <= error)
        self.counts: Counter = Counter(shape=2 * self._buckets + len(_SPECIAL), persistent=persistent)

    @property
    def _buckets(self) -> int:
        """The number of buckets for each sign."""
        return _EXPONENTS << self.mantissa_bits

    def compute(self) -> LogHistogramResult:
        """Returns the counts as a result with a method `quantile`."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> LogHistogramResult:
        """Returns the record of a state; see `Statistic.read`."""
        counts = exact_or_traced(state["counts"])
        numpy = np if isinstance(counts, np.ndarray) else jnp
        end = 2 * self._buckets
        positive, negative = counts[..., : self._buckets], counts[..., self._buckets : end]
        zero, nan, posinf, neginf = (counts[..., end + k] for k in range(len(_SPECIAL)))
        parts = [neginf[..., None], negative[..., ::-1], zero[..., None], positive, posinf[..., None]]
        buckets = numpy.concatenate(parts, axis=-1)
        return LogHistogramResult(unboxed(nan)[0], buckets, self.relative_error, self.mantissa_bits)

    def _counted(self, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
        del axes  # all
        return _count_buckets(x, where, self.mantissa_bits)

    def _configuration(self) -> dict[str, Any]:
        return {"relative_error": self.relative_error}


@functools.partial(jax.jit, static_argnums=2, inline=True)
def _count_buckets(x: jax.Array, where: jax.Array | None, mantissa_bits: int) -> jax.Array:
    """Returns uint32[554 * 2**m + 4]: positive buckets, negative ones, zero, NaN, +inf and -inf."""
    length = 2 * (_EXPONENTS << mantissa_bits) + len(_SPECIAL)
    return count_slots(functools.partial(_slot_of, mantissa_bits=mantissa_bits), x, where, length=length)


def _slot_of(x: jax.Array, *, mantissa_bits: int) -> jax.Array:
    buckets = _EXPONENTS << mantissa_bits
    bits = _float32_bits(x)
    negative, magnitude = bits >> 31, bits & 0x7FFF_FFFF
    # A subnormal number is its mantissa times 2**-149. As a float32, this mantissa has exponents 127 to 149.
    normalised = jax.lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.uint32) - jnp.uint32(127 << _MANTISSA)
    normal = magnitude + jnp.uint32(_SUBNORMAL << _MANTISSA)
    key = jnp.where(magnitude < 1 << _MANTISSA, normalised, normal) >> (_MANTISSA - mantissa_bits)
    slot = key + negative * jnp.uint32(buckets)
    infinite, end = jnp.uint32(0xFF << _MANTISSA), jnp.uint32(2 * buckets)
    special = jnp.where(magnitude > infinite, end + 1, end + 2 + negative)
    return jnp.where(magnitude >= infinite, special, jnp.where(magnitude == 0, end, slot)).astype(jnp.int32)


def _float32_bits(x: jax.Array) -> jax.Array:
    """Returns the bits of every value as float32, without arithmetic on subnormal numbers, which XLA would flush."""
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _bounds(mantissa_bits: int) -> np.ndarray:
    """Returns float64[2 * buckets + 4]: the bounds of all buckets in ascending order, -inf, ..., 0, 0, ..., +inf."""
    exponents = np.arange(-126 - _SUBNORMAL - 1, 128)
    mantissas = 1 + np.arange(1 << mantissa_bits) / (1 << mantissa_bits)
    positive = np.append(np.ldexp(mantissas, exponents[:, None]).ravel(), 2.0**128)
    return np.concatenate([[-np.inf], -positive[::-1], positive, [np.inf]])


def _middles(bounds: np.ndarray) -> np.ndarray:
    """Returns the estimate of each bucket, the harmonic mean of its bounds; 0 for the bucket around zero."""
    low, high = np.asarray(bounds[:-1], np.float64), np.asarray(bounds[1:], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        middles = 2 * low * (high / (low + high))
    zero = len(middles) // 2
    middles[[0, zero, -1]] = -np.inf, 0.0, np.inf
    return middles
