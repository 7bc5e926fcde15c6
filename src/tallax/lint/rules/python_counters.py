# SPDX-License-Identifier: Apache-2.0
"""TLX007: counters and flags of a module that are plain Python values."""

from __future__ import annotations

import ast
import re

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Array, Instance, Number
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING, Setting, is_self
from tallax.lint._steps import is_forward, is_test

RULE = Rule(
    code="TLX007",
    slug="python-counter",
    title="A plain Python counter on a module",
    why="""\
A Python number on a module is part of its structure, and not of its state. Under `nnx.jit` each new value is a new
structure, so each call is traced and compiled again. `nnx.state` and checkpoints do not contain it. Under `jax.jit` it
keeps the value that it had during the trace.

The rule reports `self.calls += 1` (also `*=` and the other operators) and `self.calls = self.calls + 1` in a method of
a module other than `__init__`, if the attribute starts as a Python number. It reports a flag that `__init__` sets to
False and the forward path to True, or the other way around. It also reports an array in the place of None, a flag or a
number that `__init__` has set: for Flax the attribute is not state, so the assignment raises ValueError. If `__init__`
sets `nnx.data(None)`, an array may follow.

Plain Python classes, `__iter__` and `__next__`, arrays, counts modulo a number, and modules in a test file that
mentions no transformation are not reported.
""",
    bad="""\
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x
""",
    good="""\
import tallax
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.calls = tallax.Counter()

    def __call__(self, x):
        self.calls.increment()
        return x
""",
    misses="Numbers that a function of another project returns, and mixins without a module in their own file.",
)

_TRACING = re.compile(r"\b(?:jit|pmap|scan|vmap|remat|checkpoint|while_loop|fori_loop|compile_step)\b")
_BOOKKEEPING = {"append", "extend", "insert", "pop", "remove", "clear", "set_state", "load_state_dict"}


@CHECKS.each_class
def python_number(cls: Scope, context: Context) -> None:
    """Reports a Python number of a module that its methods increase."""
    if not any(s.augmented or s.value is not None for group in context.values.settings(cls).values() for s in group):
        return
    whole = [cls] if context.values.is_module(cls) else context.values.heirs(cls)
    if not whole:
        return
    for name, settings in context.values.settings(cls).items():
        for setting in settings:
            method = "" if setting.method is None else setting.method.name.rpartition(".")[2]
            special = method.startswith("__") and method != "__call__"  # iterators and containers count themselves
            if setting.making or special or method in _BOOKKEEPING:
                continue
            if setting.method is None or not _counts_up(setting, name) or _is_eager_double(name, context):
                continue
            value = context.values.member(cls, name, None)
            if not isinstance(value, Number) or value.type not in ("int", "float"):
                continue
            if all(_is_made_plain(c, name, context) for c in whole):
                _report_number(f"self.{name}", setting.node, context)


def _report_number(shown: str, node: ast.AST, context: Context) -> None:
    context.report(
        RULE,
        node,
        f"`{shown}` is a plain Python number on a module: each new value is another structure, so "
        "nnx.jit traces again; use tallax.Counter, or an nnx.Variable with a dtype",
    )


def _is_eager_double(name: str, context: Context) -> bool:
    """Returns whether a file is a test in which nothing is traced, or which asserts the number itself: its modules may
    count calls in Python.
    """
    if not is_test(context.file.path):
        return False
    return not _TRACING.search(context.file.text) or bool(
        re.search(rf"\bassert[^\n]*\.{re.escape(name)}\b", context.file.text)
    )


@CHECKS.each_class
def flipped_flag(cls: Scope, context: Context) -> None:
    """Reports `self.initialized = True` in the forward path of a module if the attribute starts as `False`."""
    for name, settings in context.values.settings(cls).items():
        later = [s for s in settings if not s.making and _flag(s) is not None]
        if not later or not context.values.is_module(cls) or _is_eager_double(name, context):
            continue
        starts = _starts(cls, name, context)
        if not starts:
            continue
        forward = context.values.forward_by_any_name(cls)
        for setting in later:
            runs = setting.method in forward or is_forward(setting.scope, context)
            if runs and ({_flag(setting)} != starts or _flag(setting) == _TURNED):
                _report_flip(f"self.{name}", setting.node, context)


def _starts(cls: Scope, name: str, context: Context) -> set[bool | str | None]:
    """Returns the flags or words that an attribute starts with; empty if it may start with another value."""
    for current in context.values.lineage(cls):
        if isinstance(current, str):
            continue
        made: list[bool | str | None] = [_flag(s) for s in context.values.settings(current).get(name, ()) if s.making]
        made = made or [_written(b.what) if b.how == "value" else None for b in current.bindings.get(name, ())]
        if made:
            return set() if None in made else set(made)
    return set()


@CHECKS.node(ast.AugAssign)
def number_from_outside(node: ast.AugAssign, scope: Scope, context: Context) -> None:
    """Reports `model.calls += 1` where the class of `model` makes the attribute a Python number."""
    target = node.target
    if not isinstance(target, ast.Attribute) or is_self(target.value, scope):
        return
    owner = context.values.of(target.value, scope)
    if not isinstance(owner, Instance) or isinstance(owner.cls, str) or not context.values.is_module(owner.cls):
        return
    value = context.values.member(owner.cls, target.attr, None)
    if isinstance(value, Number) and value.type in ("int", "float") and _is_made_plain(owner.cls, target.attr, context):
        making = scope.name.rpartition(".")[2] in MAKING  # of a module around it
        if not making and not is_test(context.file.path):
            _report_number(context.source_of(target), node, context)


@CHECKS.node(ast.Assign)
def flipped_from_outside(node: ast.Assign, scope: Scope, context: Context) -> None:
    """Reports `model.ready = True` in a function under a transformation, where the class makes it a plain flag."""
    if not isinstance(node.value, ast.Constant):
        return
    for target in node.targets:
        if not isinstance(target, ast.Attribute):
            continue
        owner = context.values.of(target.value, scope)
        if not isinstance(owner, Instance) or isinstance(owner.cls, str) or is_self(target.value, scope):
            continue
        starts = _starts(owner.cls, target.attr, context)
        if starts and starts != {node.value.value} and context.values.is_module(owner.cls):
            if is_forward(scope, context):
                _report_flip(context.source_of(target), node, context)


def _report_flip(shown: str, node: ast.AST, context: Context) -> None:
    context.report(
        RULE,
        node,
        f"the forward path flips `{shown}`, a plain Python flag: nnx.jit traces again, and jax.jit loses the change; "
        "decide it before the first call, or use an nnx.Variable of bool",
    )


_TURNED = "turned"  # `self.flag = not self.flag`


def _flag(setting: Setting) -> bool | str | None:
    """Returns the flag or word that a statement assigns, None if it is none that is written out."""
    value = setting.value
    if setting.item != () or setting.augmented:
        return None
    if _written(value) is not None:
        return _written(value)
    turned = isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
    return _TURNED if turned and not setting.making else None


def _written(value: ast.expr | None) -> bool | str | None:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, (bool, str)) else None


@CHECKS.each_class
def array_in_a_plain_attribute(cls: Scope, context: Context) -> None:
    """Reports an attribute of a module that starts as None or a number, and gets an array in the forward path."""
    for name, settings in context.values.settings(cls).items():
        later = [s for s in settings if not s.making]
        if not later or name in cls.bindings or not context.values.is_module(cls):
            continue
        if not _is_made_static(cls, name, context):
            continue
        forward = context.values.forward(cls)
        for setting in sorted(later, key=lambda setting: setting.node.lineno):
            # `+=` of an array to a number raises in any method; a plain assignment may be how a method builds the model
            runs = setting.augmented or setting.method in forward
            if runs and isinstance(context.values.value_of(setting), Array):
                context.report(
                    RULE,
                    setting.node,
                    f"`self.{name}` is made as a plain value and given an array here: Flax raises ValueError, or "
                    "traces again in older versions; make it an nnx.Cache or nnx.Variable",
                )
                if setting.augmented:
                    break  # one finding for each sum


def _is_made_static(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether whatever makes a module makes the attribute a None, a flag or a number that is written out.

    If no `__init__` sets it, the methods that do without `+=` make it.
    """
    for current in context.values.lineage(cls):
        made = [] if isinstance(current, str) else context.values.settings(current).get(name, [])
        making = [s for s in made if s.making and not s.augmented] or [s for s in made if not s.augmented]
        if making:
            return all(isinstance(s.value, ast.Constant) and s.item == () for s in making)
    return False


def _counts_up(setting: Setting, name: str) -> bool:
    """Returns whether a statement computes an attribute from its old value: `+=`, `*=`, `self.n = self.n + 1`."""
    node, own = setting.node, setting.method.self_name if setting.method is not None else None
    if isinstance(node, ast.AugAssign):
        return True  # `*=` and `|=` change the structure just as `+=` does
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.BinOp) or len(node.targets) != 1:
        return False
    sides = [node.value.left, node.value.right] if isinstance(node.value.op, ast.Add) else [node.value.left]
    return isinstance(node.value.op, (ast.Add, ast.Sub)) and any(
        isinstance(old, ast.Attribute) and old.attr == name and isinstance(old.value, ast.Name) and old.value.id == own
        for old in sides
    )


def _is_made_plain(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether the attribute starts as a number that is written out, not as what some function returned."""
    for current in context.values.lineage(cls):
        if isinstance(current, str):
            continue
        making = [s for s in context.values.settings(current).get(name, ()) if s.making and not s.augmented]
        if making:
            return all(isinstance(context.values.value_of(s), Number) for s in making)
        if name in current.bindings:
            return all(b.how in ("value", "annotation") for b in current.bindings[name])
    return False
