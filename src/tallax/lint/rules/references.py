# SPDX-License-Identifier: Apache-2.0
"""TLX011: a Variable that is a reference, written under rematerialisation."""

from __future__ import annotations

import ast

from tallax.lint._attribute_uses import Use
from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Callee, Instance, Variable
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX011",
    slug="reference-remat",
    title="A Variable(ref=True) written under remat",
    why="""\
`nnx.remat` and `jax.checkpoint` run the forward pass a second time for the gradient. The update of an ordinary Variable
is returned once. The update of a reference, `nnx.Variable(x, ref=True)`, happens at each run, so a count doubles; in
graph mode it is lost. Neither raises an error.

The rule reports the Variable if its class writes it in a method that the class puts under remat.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32), ref=True)

    @nnx.remat
    def __call__(self, x):
        self.count[...] += 1
        return x
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    @nnx.remat
    def __call__(self, x):
        self.count[...] += 1
        return x
""",
    misses="Modules that another file puts under remat, and references by `nnx.var_defaults`.",
)

_REMATS = {"nnx.remat", "nnx.checkpoint", "jax.checkpoint", "jax.remat", "jax.ad_checkpoint.checkpoint"}


@CHECKS.each_class
def counted_twice(cls: Scope, context: Context) -> None:
    """Reports the references of a class that it writes under remat."""
    for name, settings in context.values.settings(cls).items():
        for setting in settings:
            call = setting.value
            if not isinstance(call, ast.Call) or not any(
                w.arg == "ref" and isinstance(w.value, ast.Constant) and w.value.value is True for w in call.keywords
            ):
                continue
            if isinstance(context.values.of(call, setting.scope), Variable):
                if any(_is_under_remat(write.use, cls, context) for write in context.uses.writes(cls, name)):
                    context.report(
                        RULE,
                        call,
                        f"`self.{name}` is a reference that is written under remat, which runs its "
                        "updates twice or loses them; "
                        "leave `ref=True` out",
                    )


def _is_under_remat(use: Use, cls: Scope, context: Context) -> bool:
    for scope in (use.scope, use.method):
        if not _REMATS.isdisjoint(context.values.transforms_of(scope)):
            return True
    for call in (call for scope in context.file.inside() for call in scope.of(ast.Call)):
        function = call.func
        last = last_name(function)
        if last in ("remat", "checkpoint") and call.args:
            scope = context.scope_of(call)
            if context.values.transform_of(function, scope) in _REMATS:
                given = context.values.of(call.args[0], scope)
                if isinstance(given, Callee) and given.scope is use.method:
                    return True
                if isinstance(given, Instance) and given.cls is cls:
                    return True
    return False
