# SPDX-License-Identifier: Apache-2.0
"""TLX019: intermediates that are sown outside of nnx.capture and taken out afterwards."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Name
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX019",
    slug="sow-outside-capture",
    title="sow outside of nnx.capture (deprecated since Flax 0.12)",
    since="0.12",
    reports="""\
`nnx.pop(model, nnx.Intermediate)` and `nnx.state(model, nnx.Intermediate)`, if the file does not mention
`nnx.capture`, and its classes, or classes that it imports, call `sow`.
""",
    why="""\
Since Flax 0.12, `module.sow(...)` outside of `nnx.capture` raises a DeprecationWarning. If you call the model first
and take the values out with `nnx.pop` afterwards, it sows outside of `nnx.capture`. `nnx.capture(model,
nnx.Intermediate)` returns a function that returns the result and the intermediates, and leaves the model unchanged.
If you support an older Flax, set `flax-version = "0.11"`, or ignore the rule.
""",
    bad="""\
from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


def load_of(gate: Gate, x):
    gate(x)
    return nnx.pop(gate, nnx.Intermediate)
""",
    good="""\
from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


def load_of(gate: Gate, x):
    _, intermediates = nnx.capture(gate, nnx.Intermediate)(x)
    return intermediates
""",
    limits="If the class of the model is in a file that is not imported by name, it is not reported.",
)

_HARVESTING = {"nnx.pop", "nnx.state"}


@CHECKS.call("pop", "state")
def harvested(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `nnx.pop(model, nnx.Intermediate)`."""
    if len(node.args) < 2 or not any(_is_intermediate(given) for given in node.args[1:]):
        return
    if "capture(" in context.file.text:
        return
    callee = context.values.of(node.func, scope)
    if not isinstance(callee, Name) or callee.name not in _HARVESTING:
        return
    if any(context.values.of(given, scope) == Name("nnx.Intermediate") for given in node.args[1:]):
        if any(_sows(cls) for cls in context.classes_at_hand()):
            context.report(
                RULE,
                node,
                f"these intermediates were sown outside of nnx.capture, which is deprecated since Flax 0.12; write "
                f"`nnx.capture({context.source_of(node.args[0])}, nnx.Intermediate)(...)`",
            )


def _is_intermediate(node: ast.expr) -> bool:
    return last_name(node) == "Intermediate"


def _sows(cls: Scope) -> bool:
    return any(
        isinstance(call.func, ast.Attribute) and call.func.attr == "sow"
        for method in cls.methods
        for inner in method.inside()
        for call in inner.of(ast.Call)
    )
