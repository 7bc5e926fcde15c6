# SPDX-License-Identifier: Apache-2.0
"""TLX020: comments that silence nothing. `_noqa` finds them, after all other rules."""

from __future__ import annotations

from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX020",
    slug="unused-noqa",
    title="A noqa comment that silences no finding",
    reports="""\
A `# noqa` comment that names rules of `tallax lint`, if it silences no finding on its line or in the statement that
ends there. Codes of other tools, comments without codes, and rules that are not applied to the file are not reported.
""",
    why="""\
A comment that outlives its finding hides the next one.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx

count = nnx.Variable(jnp.zeros((), jnp.int32))  # noqa: TLX005
""",
    good="""\
import jax.numpy as jnp
from flax import nnx

count = nnx.Variable(jnp.zeros((), jnp.int32))
""",
    fix="It removes the code, and the comment if no other code is left in it.",
)
