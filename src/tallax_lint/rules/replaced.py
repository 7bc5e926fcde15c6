# SPDX-License-Identifier: Apache-2.0
"""TLX002: a Variable replaced by what was to be written into it."""

from __future__ import annotations

from tallax_lint._rule import Rule

RULE = Rule(
    code="TLX002",
    slug="replaced-variable",
    title="A Variable is replaced instead of written",
    why="""\
`self.count += 1` and `self.count = self.count + 1` put an array, or a new object, where the module had a Variable. From
then on no transformation writes the value back, `nnx.state(model, Count)` does not hold it, and a checkpoint leaves it out.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count += 1
        return x
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x
""",
    fix="`self.x += y` becomes `self.x[...] += y` where the Variable is known to hold an array.",
)
