# SPDX-License-Identifier: Apache-2.0
"""TLX009: counting in a debug callback."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Callee, Name
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX009",
    slug="callback-counter",
    title="Counting in jax.debug.callback",
    why="""\
`jax.debug.callback` is made for debugging. JAX may run the callback more or less often than the program calls it, or in
another order: in jax-ml/jax#16637, five calls count as one. Each run also waits for the host. So a sum that a callback
adds up is not a count.

The rule reports a callback that adds to a name or attribute outside of itself.
""",
    bad="""\
import jax
from flax import nnx

seen = {"tokens": 0}


def note(n):
    seen["tokens"] += int(n)


@nnx.jit
def step(tokens):
    jax.debug.callback(note, tokens.size)
    return tokens
""",
    good="""\
import tallax
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.tokens = tallax.Counter()

    def __call__(self, tokens):
        self.tokens.increment(tokens.size)
        return tokens
""",
    misses="""\
Callbacks that are methods of other projects. `io_callback` runs as often as the program says, and is not reported.""",
)


@CHECKS.call("callback", "id_tap")
def counted(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `jax.debug.callback(f, ...)` where `f` adds to something outside."""
    function = node.func
    if not node.args:
        return
    callee = context.values.of(function, scope)
    if not isinstance(callee, Name) or callee.name not in (
        "jax.debug.callback",
        "jax.experimental.host_callback.id_tap",
    ):
        return
    given = context.values.of(node.args[0], scope)
    if isinstance(given, Callee) and _adds_outside(given.scope):
        context.report(
            RULE,
            node,
            f"`{context.source_of(node.args[0])}` counts in a debug callback, which JAX may run more "
            "or less often than once; "
            "count in the program, with tallax.Counter",
        )


def _adds_outside(scope: Scope) -> bool:
    for node in scope.of(ast.AugAssign):
        if not isinstance(node.op, (ast.Add, ast.Sub)):
            continue
        target = node.target
        if isinstance(target, (ast.Attribute, ast.Subscript)):
            return True
        if any(isinstance(s, (ast.Nonlocal, ast.Global)) and target.id in s.names for s in ast.walk(scope.node)):
            return True
    return False
