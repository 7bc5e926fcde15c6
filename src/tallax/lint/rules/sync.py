# SPDX-License-Identifier: Apache-2.0
"""TLX003: reading a Variable's value into Python where that stops the device or the trace."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Array, Name, Number, Value, Variable
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING
from tallax.lint._steps import is_forward, is_training, loop_around, runs_once

RULE = Rule(
    code="TLX003",
    slug="host-sync",
    title="A Variable's value read into Python in a step",
    reports="""\
`int(x)`, `float(x)`, `.item()`, `np.asarray(x)`, `assert x`, `range(x)`, `if x:`, and `x and y` or `x or y`, if `x`
is the array of a Variable, is computed from it, or is written into it. The rule looks at the `__call__` of a module
and the methods that it calls, at methods named `..._jit`, at functions under a transformation, and at loops that call a
jitted step.

- In a loop, the lines below `if k % 100 == 0` are not reported. A condition is: `if int(model.count[...]) % 100 == 0`
  reads the count at every step.
- In other methods of a module, only `self.count[...] = int(...)` of an array is reported: it waits only to write the
  number back.
- Shapes, dtypes and Variables that hold Python numbers are known without the device, so they are not reported.
- Reports, properties and iterators on the host are not steps.
""",
    why="""\
Python needs the number at once. Under a trace there is no number, and JAX raises `ConcretizationTypeError` or
`TracerBoolConversionError`. Outside of a trace, Python waits at every call until the device has finished all its
work.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    def __call__(self, x):
        if self.count[...] > 100:
            x = 2 * x
        return x
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    def __call__(self, x):
        return jnp.where(self.count[...] > 100, 2 * x, x)
""",
    limits="""\
If a value reaches Python through a function of another project, it is not reported. Losses are not reported either,
because the rule looks at state only.
""",
)

_CONVERTING = {"int", "float", "bool", "complex", "range"}
_FETCHING = {"np.asarray", "np.array", "jax.device_get", "print"}


@CHECKS.call("int", "float", "bool", "complex", "range", "print", "item", "tolist", "asarray", "array", "device_get")
def converted(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `int(x)`, `x.item()`, `np.asarray(x)` and the like on state in a step."""
    function = node.func
    if isinstance(function, ast.Name) and function.id in _CONVERTING | {"print"} and node.args:
        shown, arguments = function.id, node.args if function.id in ("print", "range") else node.args[:1]
    elif isinstance(function, ast.Attribute) and function.attr in ("item", "tolist") and not node.args:
        shown, arguments = f".{function.attr}", [function.value]
    elif isinstance(function, ast.Attribute) and function.attr in ("asarray", "array", "device_get") and node.args:
        callee = context.values.of(function, scope)
        if not isinstance(callee, Name) or callee.name not in _FETCHING:
            return
        shown, arguments = callee.name, node.args[:1]
    else:
        return
    if runs_once(scope, context) and scope.method_of is None:
        return
    arguments = [argument for argument in arguments if argument.__class__ not in (ast.Constant, ast.JoinedStr)]
    if not arguments:
        return  # most calls of `print`
    forward = is_forward(scope, context)
    loop = None if forward else loop_around(node, scope)
    if not forward and loop is None and not _is_in_update(node, scope, context):
        return
    if any(_is_state(argument, node, forward, scope, context) for argument in arguments):
        place = "in a step" if forward else ""
        if loop is not None and is_training(loop, scope, context):  # this takes longest to find out
            place = "in a training loop"
        if not place and _is_in_update(node, scope, context):
            if shown in _CONVERTING and _feeds_state(node, scope, context):
                place = "in an update of state"
        if not place:
            return
        context.report(
            RULE,
            node,
            f"`{shown}(...)` of a Variable's value {place} waits for the device, or "
            f"{'shows a tracer' if shown == 'print' else 'fails'} under a trace; keep it an array, and read it outside "
            "of the step",
        )


@CHECKS.node(ast.If, ast.While, ast.IfExp, ast.Assert)
def decided(node: ast.If | ast.While | ast.IfExp | ast.Assert, scope: Scope, context: Context) -> None:
    """Reports `if`, `while` and `assert` on state in a step."""
    if runs_once(scope, context):
        return  # so it is with most, and this runs for every condition
    test = node.test
    kind = test.__class__
    if kind is ast.BoolOp or kind is ast.UnaryOp:
        tests = [test for test in _conditions(test) if _may_be_state(test)]
    else:
        tests = [test] if _may_be_state(test) else []
    if not tests:
        return
    if not is_forward(scope, context):
        _decided_in_loop(node, scope, context)
        return
    for test in tests:
        value = context.values.of(test, scope)
        if isinstance(value, Variable):  # `if self.bias:` may test whether there is one, unless its array is a scalar
            content = context.values.content(value)
            value = content if isinstance(content, Array) and content.scalar else None
        if isinstance(value, (Array, Number)) and value.state is not None:
            word = _word(node)
            context.report(
                RULE,
                node.test,
                f"`{word}` on a Variable's value in a step waits for the device, or fails under a trace; use "
                + ("jax.experimental.checkify" if word == "assert" else "jnp.where or nnx.cond"),
            )
            return


_NO_VALUE = {ast.Is, ast.IsNot, ast.In, ast.NotIn}
_ASKING = {"isinstance", "hasattr", "callable", "issubclass"}


def _may_be_state(test: ast.expr) -> bool:
    """Returns whether a condition may hold a Variable's value, by its form: `x is None` may not."""
    kind = test.__class__
    if kind is ast.Compare:
        ops = test.ops  # type: ignore[attr-defined]
        return ops[0].__class__ not in _NO_VALUE or not all(op.__class__ in _NO_VALUE for op in ops)
    if kind is ast.Call:
        function = test.func  # type: ignore[attr-defined]
        return function.__class__ is not ast.Name or function.id not in _ASKING
    return kind is not ast.Constant


def _decided_in_loop(node: ast.If | ast.While | ast.IfExp | ast.Assert, scope: Scope, context: Context) -> None:
    """Reports a condition that a training loop evaluates at every step. The first operand of `and` always is."""
    first = node.test
    while first.__class__ is ast.BoolOp or first.__class__ is ast.UnaryOp:
        if first.__class__ is ast.UnaryOp and not isinstance(first.op, ast.Not):  # type: ignore[attr-defined]
            break
        first = first.values[0] if first.__class__ is ast.BoolOp else first.operand  # type: ignore[attr-defined]
    loop = None if isinstance(first, (ast.Name, ast.Constant)) else loop_around(first, scope)
    if loop is None:
        return
    value = context.values.of(first, scope)
    if not isinstance(value, Array) or value.state is None or not _is_known_array(first, value, scope, context):
        return
    if is_training(loop, scope, context):
        context.report(
            RULE,
            node.test,
            f"`{_word(node)}` on a Variable's value in a training loop waits for the device at every step; ask a step "
            "number that Python has, as that of `enumerate`",
        )


def _word(node: ast.AST) -> str:
    return {ast.While: "while", ast.Assert: "assert"}.get(type(node), "if")


def _conditions(test: ast.expr) -> Iterator[ast.expr]:
    """Yields the operands of `and`, `or` and `not`, because Python converts each of them to a bool."""
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _conditions(value)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _conditions(test.operand)
    else:
        yield test


def _is_state(node: ast.expr, call: ast.Call, forward: bool, scope: Scope, context: Context) -> bool:
    """Returns whether an argument is an array of state, or an array that is written into state.

    Under a trace, a Python number in a Variable is an array too.
    """
    value: Value | None = context.values.of(node, scope)
    if isinstance(value, Variable):
        content = context.values.content(value)
        return isinstance(content, Array)
    if isinstance(node, ast.Call) and _is_of_jax(node, scope, context) and _feeds_state(call, scope, context):
        return True  # jax.numpy makes arrays of Python numbers too
    if isinstance(value, Number):
        return value.state is not None and forward
    if not isinstance(value, Array):
        return False
    if value.state is not None:
        return _is_known_array(node, value, scope, context)
    return _feeds_state(call, scope, context)


def _is_of_jax(node: ast.Call, scope: Scope, context: Context) -> bool:
    callee = context.values.of(node.func, scope)
    return isinstance(callee, Name) and callee.name.startswith("jnp.")


def _is_known_array(node: ast.expr, value: Array, scope: Scope, context: Context) -> bool:
    """Returns whether the Variables in an expression surely hold arrays: a Python number in one needs no device."""
    if value.dtype or value.weak is not None:
        return True
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Attribute, ast.Name)):
            held = context.values.of(inner, scope)
            if isinstance(held, Variable):
                return isinstance(context.values.content(held), Array)
    return False


def _feeds_state(call: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether a statement writes a Variable's value."""
    statement = scope.file.statement_of(call)
    if not isinstance(statement, (ast.Assign, ast.AugAssign)):
        return False
    for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
        if isinstance(target, (ast.Subscript, ast.Attribute)):
            if isinstance(context.values.of(target.value, scope), Variable):
                return True
    return False


def _is_in_update(node: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether a method of a module converts an array to a Python number only to write it into a Variable."""
    method = scope.method_of
    if method is None or scope.name.rpartition(".")[2] in MAKING or not context.values.is_module(method):
        return False
    statement = scope.file.statement_of(node)
    return isinstance(statement, (ast.Assign, ast.AugAssign)) and statement.value is node
