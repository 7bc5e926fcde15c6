# SPDX-License-Identifier: Apache-2.0
"""TLX014: modules and Variables in a plain list, tuple or dict attribute."""

from __future__ import annotations

import ast

from tallax.lint._bindings import reaching
from tallax.lint._check import CHECKS, Context, insertion, replacement
from tallax.lint._classes import Setting, is_self
from tallax.lint._finding import Edit
from tallax.lint._index import Scope
from tallax.lint._kinds import Frame, Instance, Items, Table, Value, Variable
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
`pytree=False`, are not reported.
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
            held = _state_in(context.values.value_of(setting), context) or _of_elements(setting, context)
            # A list that a later method replaces may be promoted to an nnx.List there.
            if not held and isinstance(setting.value, ast.List) and not setting.value.elts and len(settings) == 1:
                held = _state_in(context.values.member(cls, name, None), context) or _appended(cls, name, context)
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


def _of_elements(setting: Setting, context: Context) -> str:
    """Returns what state the elements that are written out hold; others may stand beside them."""
    value = setting.value
    elements = [*value.elts] if isinstance(value, (ast.List, ast.Tuple)) else []
    elements += [e for e in value.values if e is not None] if isinstance(value, ast.Dict) else []
    for element in elements:
        inner = element.value if isinstance(element, ast.Starred) else element
        held = _one_state(context.values.of(inner, setting.scope), context)
        if held:
            return held
    return ""


def _appended(cls: Scope, name: str, context: Context) -> str:
    """Returns what state a method appends to `self.name`; other elements may be unknown."""
    for method in cls.methods:
        for scope in method.inside():
            for call in scope.of(ast.Call):
                function = call.func
                if not isinstance(function, ast.Attribute) or function.attr not in ("append", "insert", "extend"):
                    continue
                target = function.value
                if isinstance(target, ast.Attribute) and target.attr == name and is_self(target.value, scope):
                    held = _one_state_of(call.args[-1], scope, context) if call.args else ""
                    if held:
                        return held
    return ""


def _one_state_of(node: ast.expr, scope: Scope, context: Context) -> str:
    """Returns what state an expression may be; of a name that is bound in several branches, one is enough."""
    held = _one_state(context.values.of(node, scope), context)
    if held or not isinstance(node, ast.Name):
        return held
    values = (context.values.binding(b, Frame(scope)) for b in reaching(scope.bindings.get(node.id, ()), node.lineno))
    return next((held for value in values if (held := _one_state(value, context))), "")


def _is_declared(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether a class declares the attribute, `x: nnx.Data[list]`, or is not a pytree."""
    for current in context.values.lineage(cls):
        if isinstance(current, str):
            continue
        # A plain annotation, `layers: list[Block]`, does not make the attribute data.
        bound = current.bindings.get(name, ())
        if any(b.how != "annotation" or "data" in ast.unparse(b.what).lower() for b in bound):
            return True
        if any(word.arg == "pytree" for word in current.node.keywords):  # type: ignore[attr-defined]
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
    return next((held for each in inside if (held := _one_state(each, context))), "")


def _one_state(value: Value | None, context: Context) -> str:
    """Returns what state a value surely is or holds, empty if none is known."""
    if isinstance(value, Variable):
        return "Variables"
    if isinstance(value, Instance):
        is_state = value.cls.startswith("nnx.") if isinstance(value.cls, str) else context.values.is_node(value.cls)
        return "modules" if is_state else ""
    return _state_in(value, context)


def _as_list(setting: Setting, context: Context) -> tuple[Edit, ...]:
    if not any(b.how == "import" and b.what == "flax.nnx" for b in context.file.bindings.get("nnx", ())):
        return ()
    assert setting.value is not None
    start = (setting.value.lineno, setting.value.col_offset)
    return (replacement(start, start, "nnx.List("), insertion(setting.value, ")"))
