# SPDX-License-Identifier: Apache-2.0
"""TLX014: modules and Variables in a plain list, tuple or dict attribute."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context, insertion, replacement
from tallax.lint._classes import Setting
from tallax.lint._finding import Edit
from tallax.lint._index import Scope
from tallax.lint._kinds import Instance, Items, Table, Value, Variable
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX014",
    slug="plain-container",
    title="Modules in a plain list, tuple or dict attribute (Flax 0.12 and later)",
    since="0.12",
    why="""\
Since Flax 0.12, a plain list, tuple or dict is a static attribute of a module. If it holds modules or Variables, making
the module raises ValueError. Use `nnx.List` and `nnx.Dict`, or `nnx.data(...)`. If you support an older Flax, ignore
the rule: `ignore = ["plain-container"]`.

The rule reports `self.x = [...]` in a method of an `nnx.Module` if an element is surely a module or a Variable, also
if the list starts empty and the class appends to it. Attributes that the class declares in its body, and classes with
`pytree=False`, are no findings.
""",
    bad="""\
from flax import nnx


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(4, 4, rngs=rngs) for _ in range(3)]
""",
    good="""\
from flax import nnx


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
""",
    fix="A list becomes `nnx.List([...])`, if the file imports nnx. Tuples and dicts are left to you.",
    misses="Lists that another function makes, and elements whose class can't be told.",
)

_PLAIN = (ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.DictComp)


@CHECKS.each_class
def held_in_plain_container(cls: Scope, context: Context) -> None:
    """Reports `self.layers = [nnx.Linear(...), ...]`."""
    for name, settings in context.values.settings(cls).items():
        written = [s for s in settings if isinstance(s.value, _PLAIN) and s.item == () and not s.augmented]
        if not written or not context.values.is_module(cls) or _is_declared(cls, name, context):
            continue
        for setting in written:
            held = _state_in(context.values.value_of(setting), context)
            # A list that a later method replaces may be promoted to an nnx.List there.
            if not held and isinstance(setting.value, ast.List) and not setting.value.elts and len(settings) == 1:
                held = _state_in(context.values.member(cls, name, None), context)
            if held and setting.value is not None:
                shown = {ast.Tuple: "tuple", ast.Dict: "dict", ast.DictComp: "dict"}.get(type(setting.value), "list")
                remedy = "nnx.Dict" if shown == "dict" else "nnx.List"
                context.report(
                    RULE,
                    setting.node,
                    f"`self.{name}` holds {held} in a plain {shown}, which raises ValueError since Flax 0.12; "
                    f"write `{remedy}(...)`",
                    _as_list(setting, context) if shown == "list" else (),
                )


def _is_declared(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether a class declares the attribute, `x: nnx.Data[list]`, or is no pytree."""
    for current in context.values.lineage(cls):
        if isinstance(current, str):
            continue
        if name in current.bindings or any(word.arg == "pytree" for word in current.node.keywords):  # type: ignore[attr-defined]
            return True
    return False


def _state_in(value: Value | None, context: Context) -> str:
    """Returns the state that a container certainly contains; empty if none is known."""
    if isinstance(value, Items):
        inside = [*value.items, value.each]
    elif isinstance(value, Table):
        inside = [value.each, *(each for _, each in value.named)]
    else:
        return ""
    for each in inside:
        if isinstance(each, Variable):
            return "Variables"
        if isinstance(each, Instance):
            if isinstance(each.cls, str):
                if each.cls.startswith("nnx."):
                    return "modules"
            elif context.values.is_node(each.cls):
                return "modules"
    return ""


def _as_list(setting: Setting, context: Context) -> tuple[Edit, ...]:
    if not any(b.how == "import" and b.what == "flax.nnx" for b in context.file.bindings.get("nnx", ())):
        return ()
    assert setting.value is not None
    start = (setting.value.lineno, setting.value.col_offset)
    return (replacement(start, start, "nnx.List("), insertion(setting.value, ")"))
