# SPDX-License-Identifier: Apache-2.0
"""TLX004: counters that stop or wrap within a training run."""

from __future__ import annotations

import ast
import re

from tallax.lint._attribute_uses import Home
from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Array, Frame, Number, Variable
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING

RULE = Rule(
    code="TLX004",
    slug="narrow-counter",
    title="A counter that stops or wraps within a training run",
    why="""\
A float32 counter stops at 2**24 = 16,777,216, because adding 1 no longer changes it. An int32 counter wraps to a
negative number at 2**31. A count of elements, tokens or samples reaches that within hours. Neither raises an error.

The rule follows the values that a class adds to its own Variables, through local names and functions of the project. It
reports

- counts of elements (`x.size`, `x.shape[0]`, `len(batch)`, `mask.sum()`) in 32 bits or fewer
- counts of calls in a float that no method resets
- a sum in a float that belongs to a count of elements

A step counter in int32 or uint32, an index modulo the length of a ring, and a count that `jnp.minimum` caps are not
reported.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Seen(nnx.Module):
    def __init__(self):
        self.tokens = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    def __call__(self, tokens):
        self.tokens[...] += tokens.size
        return tokens
""",
    good="""\
import tallax
from flax import nnx


class Seen(nnx.Module):
    def __init__(self):
        self.tokens = tallax.Counter()

    def __call__(self, tokens):
        self.tokens.increment(tokens.size)
        return tokens
""",
    misses="""\
Unknown amounts, such as `+= n` of an argument without an annotation, and counts outside of modules.""",
)

_SIZES = re.compile(
    r"(?:^|_)(?:batch_size|batch_count|num_(?:tokens|samples|examples|elements)|n_(?:tokens|samples|examples))$"
)
_FLOATS = {"float", "float32", "bfloat16", "float16"}
_INTEGERS = {"int", "int32", "uint32", "int16", "uint16", "int8", "uint8"}


@CHECKS.each_class
def narrow(cls: Scope, context: Context) -> None:
    """Reports the Variables of a class that are too narrow for their increments."""
    if not context.values.is_node(cls):
        return
    added: dict[str, set[str]] = {}
    held: dict[str, tuple[Variable, Array]] = {}
    for name in sorted(context.uses.written(cls)):
        variable = context.values.member(cls, name, None)
        if (
            not isinstance(variable, Variable)
            or variable.call is None
            or variable.frame is None
            or variable.home is None
        ):
            continue
        content = context.values.content(variable)
        if isinstance(content, Number) and content.type == "int" and _is_in_step(cls, name, context):
            content = Array(True, "int")  # under a trace, as in a step, a Python number becomes a traced array
        if isinstance(content, Array) and content.dtype in _FLOATS | _INTEGERS:
            held[name] = (variable, content)
            added[name] = _amounts(cls, variable.home, context)
    counts_elements = any("size" in amounts for amounts in added.values())
    for name, (variable, content) in held.items():
        message = _outgrown(name, content, added[name], counts_elements, cls, context)
        if message and variable.call is not None and variable.frame is not None:
            if variable.frame.scope.file is context.file:
                context.report(RULE, context.file.statement_of(variable.call), message)


def _is_in_step(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether the forward path writes an attribute."""
    forward = context.values.forward(cls)
    return any(write.use.method in forward for write in context.uses.writes(cls, name))


def _outgrown(name: str, content: Array, amounts: set[str], counts_elements: bool, cls: Scope, context: Context) -> str:
    if content.dtype in _FLOATS:
        if "size" in amounts or ("one" in amounts and not _is_reset(cls, name, context)):
            where = f"counts in {_spelled(content)}, where adding 1 changes nothing from 2**24 on"
            return f"`self.{name}` {where}; use tallax.Counter"
        if "sum" in amounts and counts_elements:
            return (
                f"`self.{name}` adds up what another attribute counts, in {_spelled(content)}: of "
                "counts it is exact only up to 2**24; "
                "use tallax.Rate or tallax.Moments"
            )
    elif "size" in amounts:
        limit = {"int": 31, "int32": 31, "uint32": 32, "int16": 15, "uint16": 16, "int8": 7, "uint8": 8}[content.dtype]
        return f"`self.{name}` counts elements in {_spelled(content)}, which wraps at 2**{limit}; use tallax.Counter"
    return ""


def _spelled(content: Array) -> str:
    return {"int": "int32", "float": "float32"}.get(content.dtype, content.dtype)


def _amounts(cls: Scope, home: Home, context: Context) -> set[str]:
    """Returns the kinds of increments that a class adds to one of its Variables: `one`, `size`, `sum`."""
    found: set[str] = set()
    for write in context.uses.writes(cls, home[1]):
        for node, frame in context.uses.increments(write, home) or ():
            found.add(_amount(node, frame, context))
    return found


def _amount(node: ast.expr, frame: Frame, context: Context) -> str:
    value = context.values.of(node, frame)
    if isinstance(value, Number) and value.size:
        return "size"
    expanded, inner = context.uses.expanded(node, frame)
    if isinstance(expanded, ast.Call) and isinstance(expanded.func, ast.Attribute):
        if expanded.func.attr == "prod" and any(last_name(n) == "shape" for n in ast.walk(expanded)):  # type: ignore[arg-type]
            return "size"
        if expanded.func.attr in ("int32", "uint32", "float32", "asarray", "array") and expanded.args:
            return _amount(expanded.args[0], inner, context)
        if expanded.func.attr == "astype":
            return _amount(expanded.func.value, inner, context)
    if isinstance(value, Number) and value.value is not None:
        return "one" if value.type in ("int", "bool") or value.value == 1.0 else ""
    if isinstance(expanded, ast.Call) and _is_sum(expanded):
        whole = isinstance(value, Array) and value.dtype in ("int", "bool", "int32")
        return "size" if whole or _is_mask(expanded) else "sum"
    return _named(node) or _named(expanded)


def _named(node: ast.expr) -> str:
    name = last_name(node)
    if name in ("size", "nbytes"):
        return "size"
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
        return "size"
    return "size" if name and _SIZES.search(name) else ""


def _is_mask(node: ast.Call) -> bool:
    """Returns whether what is summed up is a condition: `(x > 0).sum()`, `jnp.sum(mask)`."""
    summed = node.args[0] if node.args else node.func.value if isinstance(node.func, ast.Attribute) else node
    return isinstance(summed, ast.Compare) or "mask" in last_name(summed)


def _is_sum(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("sum", "count_nonzero")
    )


def _is_reset(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether another method of the class sets the Variable back."""
    for write in context.uses.writes(cls, name):
        method = write.use.method.name.rpartition(".")[2]
        if write.operator is None and method not in MAKING and context.uses.increments(write, (cls, name)) is None:
            return True
    return False
