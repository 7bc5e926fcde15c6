# SPDX-License-Identifier: Apache-2.0
"""`Pending`: a count inside a compiled step, in two parts, so that a count that is only added to need not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from tallax import _uint64

# Names in the jaxpr of a step, by which the analysis recognizes the permitted uses of a `Pending`.
AT_MOST = "tallax.at_most:"  # an increment, with its upper bound
READ = "tallax.read"  # a read of both parts together


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pending:
    """The raw value of a `Counter` inside `tallax.compile_step`.

    All counts of a step are in one array on the device. A count is sliced out of it only if it is read. `added` is a
    plain word, which XLA folds and concatenates with the words of the other counters. There are no carries until the
    whole array is added to. If a step does anything but read or increment a count, it is traced again with the whole
    count (`tallax.compiling._jaxpr_analysis`), so a `Pending` need not be exact then.

    Attributes:
        base: The limbs before the step, uint32[*shape, 2].
        added: The sum of the increments in the step, uint32[*shape]. The bounds of the increments show that it fits.
    """

    base: Any
    added: Any

    @property
    def limbs(self) -> jax.Array:
        """The current count. When Flax prints a module, the parts are not arrays, and `base` is returned."""
        if not isinstance(self.base, jax.Array | np.ndarray):
            return self.base
        base, added = (checkpoint_name(jnp.asarray(part), READ) for part in (self.base, self.added))
        return _uint64.add(base, _uint64.pair(added))

    @property
    def shape(self) -> tuple[int, ...]:
        """The same as for the limbs."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The same as for the limbs."""
        return self.base.dtype

    def plus(self, values: Any, most: int) -> Pending:
        """Returns the count after an addition of `values`, uint32, each at most `most`."""
        if not isinstance(values, jax.Array) and values.ndim == 0 == self.added.ndim:
            return Pending(self.base, self.added + values)  # a literal is its own bound
        values = jnp.broadcast_to(jnp.asarray(values), self.added.shape)
        return Pending(self.base, self.added + checkpoint_name(values, f"{AT_MOST}{most}"))

    def at(self, limbs: Any) -> Pending:
        """Returns the count after it was overwritten by `limbs`. The step is then traced again with the whole count."""
        # A zero computed from the word itself is not an increment, so the analysis sees that the count was written.
        return Pending(jnp.asarray(limbs), self.added * np.uint32(0))
