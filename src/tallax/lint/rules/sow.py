# SPDX-License-Identifier: Apache-2.0
"""TLX012: sown values that nobody harvests."""

from __future__ import annotations

import ast
import re

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import File, Scope
from tallax.lint._kinds import Instance
from tallax.lint._rule import Rule
from tallax.lint._settings import is_self

RULE = Rule(
    code="TLX012",
    slug="sow-uncaptured",
    title="sow in a loop, and nothing that takes the values out",
    reports="""\
A `sow` without its own `reduce_fn`, if the same file calls the module in a loop and mentions neither `capture` nor
`pop`.
""",
    why="""\
`self.sow(nnx.Intermediate, name, x)` appends to a tuple on the module at every call. Until `nnx.capture` or `nnx.pop`
takes the values out, the tuple grows. Memory grows with it, and each jitted call is traced again, because the
structure of the model is new.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


def run(batches):
    gate = Gate()
    for batch in batches:
        gate(jnp.asarray(batch))
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


def run(batches):
    gate = Gate()
    for batch in batches:
        _, intermediates = nnx.capture(gate, nnx.Intermediate)(jnp.asarray(batch))
""",
    limits="If the module is called in another file, it is not reported.",
)

_HARVEST = re.compile(r"\bcapture|\bpop\b|intermediates")


@CHECKS.each_file
def grows(file: File, context: Context) -> None:
    """Reports the sows of a file's modules that it calls in a loop."""
    text = file.text
    if ".sow(" not in text or "intermediates" in text:
        return
    if ("capture" in text or "pop" in text) and _HARVEST.search(text):
        return  # the pattern takes as long as parsing where it finds nothing
    called = _called_in_loops(file, context)
    for cls in file.classes:
        if not called & {c for c in context.values.lineage(cls) if not isinstance(c, str)} and cls not in called:
            continue
        for method in context.values.forward(cls):
            for scope in method.inside():
                for call in scope.of(ast.Call):
                    function = call.func
                    if (
                        isinstance(function, ast.Attribute)
                        and function.attr == "sow"
                        and is_self(function.value, scope) is method
                    ):
                        if len(call.args) <= 3 and not any(word.arg == "reduce_fn" for word in call.keywords):
                            context.report(
                                RULE,
                                call,
                                "each call appends to what was sown, and nothing in this file takes "
                                "it out: the module grows, "
                                "and a jitted step is traced again; use nnx.capture or nnx.pop, or a tallax statistic",
                            )


def _called_in_loops(file: File, context: Context) -> set[Scope]:
    found: set[Scope] = set()
    for scope in file.inside():
        for call in scope.of(ast.Call):
            if file.enclosing(call, ast.For, ast.While) is not None:
                value = context.values.of(call.func, scope)
                if (
                    isinstance(value, Instance)
                    and not isinstance(value.cls, str)
                    and context.values.is_module(value.cls)
                ):
                    if file.enclosing(call, ast.ClassDef) is None:
                        found.add(value.cls)
    return found
