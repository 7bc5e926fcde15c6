# SPDX-License-Identifier: Apache-2.0
"""`Pending`: a count while a compiled step runs, kept in two parts so that what is only added to need not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from tallax import _uint64

# Names in the jaxpr of a step, by which it is known that a `Pending` is used as it may be.
AT_MOST = "tallax.at_most:"  # of what an increment adds, with what bounds it
READ = "tallax.read"  # of both parts, where they are read together


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pending:
    """The raw value of a `Counter` inside `tallax.compile_step`.

    All of a step's counts lie in one array on the device. A count that is read is sliced out of it; one that is only
    added to is not. `added` is a plain word, which XLA folds and concatenates with those of the other counters; there
    are no carries before the whole array is added to. Anything but a read or an increment has the step traced again
    with the count whole (`tallax.compiling._jaxpr_analysis`), so a `Pending` need not be exact there.

    Attributes:
        base: the limbs before the step, uint32[*shape, 2].
        added: the sum of the increments since, uint32[*shape]. That it fits is shown by the bound of each increment.
    """

    base: Any
    added: Any

    @property
    def limbs(self) -> jax.Array:
        """The count by now; or what stands for the array where there is none, as when Flax prints a module."""
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
        """Returns the count after `values`, uint32, of which each is at most `most`."""
        if not isinstance(values, jax.Array) and values.ndim == 0 == self.added.ndim:
            return Pending(self.base, self.added + values)  # a literal, which bounds itself
        values = jnp.broadcast_to(jnp.asarray(values), self.added.shape)
        return Pending(self.base, self.added + checkpoint_name(values, f"{AT_MOST}{most}"))

    def at(self, limbs: Any) -> Pending:
        """Returns the count after `limbs` were written over it; it will be kept whole."""
        # A zero computed from the word itself is not an increment, so the analysis sees that the count was written.
        return Pending(jnp.asarray(limbs), self.added * np.uint32(0))
