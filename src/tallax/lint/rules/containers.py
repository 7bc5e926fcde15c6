# SPDX-License-Identifier: Apache-2.0
"""TLX014: modules and Variables in a plain list, tuple or dict attribute."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from tallax.lint._bindings import reaching
from tallax.lint._check import CHECKS, Context, insertion, replacement
from tallax.lint._finding import Edit
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Callee, Frame, Instance, Items, Name, Table, Value, Variable
from tallax.lint._rule import Rule
from tallax.lint._settings import Setting, is_self

RULE = Rule(
    code="TLX014",
    slug="plain-container",
    title="Modules in a plain list, tuple or dict attribute (Flax 0.12 and later)",
    since="0.12",
    reports="""\
`self.x = [...]`, a tuple or a dict in a method of an `nnx.Module`, if an element is a module or a Variable. The list
may start empty and be filled by `append`. It may come from a local name, `list(...)`, `+`, a function of the project,
or a parameter that is annotated as a list. Attributes that the class declares in its body, and classes with
`pytree=False`, are not reported.
""",
    why="""\
Since Flax 0.12, a plain list, tuple or dict is a static attribute of a module. If it holds modules or Variables, the
constructor raises ValueError. Use `nnx.List`, `nnx.Dict` or `nnx.data(...)`. If you support an older Flax, ignore the
rule: `ignore = ["plain-container"]`.
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
    fix="A list becomes `nnx.List([...])` if the file imports nnx. Tuples and dicts are not changed.",
    limits="If an unknown function returns the list, or if the class of the elements is unknown, it is not reported.",
)

_NAMES = {"list": "list", "sorted": "list", "tuple": "tuple", "dict": "dict"}
_KINDS = {
    ast.List: "list",
    ast.ListComp: "list",
    ast.Tuple: "tuple",
    ast.Dict: "dict",
    ast.DictComp: "dict",
}
_ANNOTATIONS = {"list", "tuple", "dict"}
_ANNOTATED = re.compile(r"^(?:typing\.|t\.)?(list|tuple|dict)\[", re.IGNORECASE)
_MAKES_CONTAINERS = re.compile(r"\b(?:List|Dict|data)\(")
_FARTHEST = 4  # through local names and functions


class _Plain(NamedTuple):
    """A plain container: its kind, and the state that it holds; empty if none is known."""

    kind: str
    held: str = ""


@CHECKS.each_class
def held_in_plain_container(cls: Scope, context: Context) -> None:
    """Reports `self.layers = [nnx.Linear(...), ...]`."""
    for name, settings in context.values.settings(cls).items():
        written = [s for s in settings if not s.augmented and _is_possible(_written(s))]
        if not written or not context.values.is_module(cls) or _is_declared(cls, name, context):
            continue
        for setting in written:
            value = _written(setting)
            plain = _plain(value, setting.scope, context)
            if plain is None or value is None:
                continue
            held = plain.held or _state_in(context.values.value_of(setting), context)
            # A list that a later method replaces may be promoted to an nnx.List there; None before it is not a list.
            if not held and all(s is setting or _is_none(s.value) for s in settings):
                held = _state_in(context.values.member(cls, name, None), context)
                methods = [scope for method in cls.methods for scope in method.inside()]
                held = held or _added(name, methods, context, of_self=True)
            if held and not context.is_version_guarded(setting.node):
                remedy = "nnx.Dict" if plain.kind == "dict" else "nnx.List"
                is_list = isinstance(value, (ast.List, ast.ListComp))
                context.report(
                    RULE,
                    setting.node,
                    f"`self.{name}` holds {held} in a plain {plain.kind}, which raises ValueError since Flax 0.12; "
                    f"write `{remedy}(...)`",
                    _as_list(value, context) if is_list else (),
                )


_POSSIBLE = {*_KINDS, ast.Name, ast.BinOp, ast.IfExp}


def _written(setting: Setting) -> ast.expr | None:
    """Returns the value of an assignment, also within a tuple: `self.down, self.up = [], []`."""
    value = setting.value
    if setting.item is None:
        return None
    for k in setting.item:
        if not isinstance(value, ast.Tuple) or k >= len(value.elts):
            return None
        value = value.elts[k]
    return value


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_possible(node: ast.expr | None) -> bool:
    """Returns whether a value may be a plain container, by its form. A call of a class makes none."""
    if node.__class__ is ast.Call:
        return not last_name(node.func)[:1].isupper()  # type: ignore[union-attr]
    return node.__class__ in _POSSIBLE


def _plain(node: ast.expr | None, scope: Scope, context: Context, depth: int = 0) -> _Plain | None:
    """Returns the plain container that an expression surely makes, None if it may be another object."""
    if depth > _FARTHEST:
        return None
    kind = _KINDS.get(node.__class__)
    if kind is not None:
        assert node is not None
        return _Plain(kind, _of_elements(node, scope, context) or _state_in(context.values.of(node, scope), context))
    if isinstance(node, ast.BinOp):
        sides = [node.left, node.right] if isinstance(node.op, ast.Add) else [node.left]
        return _merged([_plain(side, scope, context, depth) for side in sides])
    if isinstance(node, ast.IfExp):
        return _merged([_plain(side, scope, context, depth) for side in (node.body, node.orelse)])
    if isinstance(node, ast.Name):
        return _of_name(node, scope, context, depth)
    if isinstance(node, ast.Call):
        return _of_call(node, scope, context, depth)
    return None


def _merged(parts: list[_Plain | None]) -> _Plain | None:
    """Returns one container for several, None if one of them may be another object."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return _Plain(known[0].kind, next((part.held for part in known if part.held), ""))


def _of_name(node: ast.Name, scope: Scope, context: Context, depth: int) -> _Plain | None:
    """Returns the plain container that a local name holds, with the modules that the function adds to it."""
    found = reaching(scope.bindings.get(node.id, ()), node.lineno)
    if len(found) == 1 and found[0].how == "parameter":
        return _of_parameter(found[0].what, scope, context)
    made = [b.what if b.how == "value" else b.what.value for b in found if b.how in ("value", "changed")]
    if not made or len(made) < len(found) or any(b.item for b in found):
        return None
    plain = _merged([_plain(what, scope, context, depth + 1) for what in made])
    return plain if plain is None or plain.held else _Plain(plain.kind, _added(node.id, [scope], context))


def _of_parameter(argument: ast.arg, scope: Scope, context: Context) -> _Plain | None:
    """Returns the container of a parameter that is annotated as one. A file that makes an nnx.List may pass that."""
    annotation = argument.annotation
    while isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    if not isinstance(annotation, ast.Subscript) or last_name(annotation.value).lower() not in _ANNOTATIONS:
        return None
    found = _ANNOTATED.match(ast.unparse(annotation))
    held = _state_in(context.values.parameter(argument, scope), context) if found is not None else ""
    if found is None or not held or _MAKES_CONTAINERS.search(context.file.text):
        return None
    return _Plain(found[1].lower(), held)


def _of_call(node: ast.Call, scope: Scope, context: Context, depth: int) -> _Plain | None:
    """Returns the plain container that `list(...)`, `dict(...)` or a function of the project returns."""
    callee = context.values.of(node.func, scope)
    if isinstance(callee, Name) and callee.name in _NAMES:
        given = [*node.args, *(word.value for word in node.keywords)]
        inner = [_state_in(context.values.of(a, scope), context) for a in given]
        if callee.name == "dict":
            inner += [_one_state(context.values.of(word.value, scope), context) for word in node.keywords]
        return _Plain(_NAMES[callee.name], next(filter(None, inner), ""))
    if isinstance(callee, Callee) and not callee.transformed and not isinstance(callee.scope.node, ast.Lambda):
        results = [r.value for r in callee.scope.of(ast.Return)]
        if len(results) == 1:
            return _plain(results[0], callee.scope, context, depth + 1)
    return None


def _of_elements(value: ast.expr, scope: Scope, context: Context) -> str:
    """Returns the state that the elements of a literal hold; other elements may be unknown."""
    elements = [*value.elts] if isinstance(value, (ast.List, ast.Tuple)) else []
    elements += [e for e in value.values if e is not None] if isinstance(value, ast.Dict) else []
    elements += [value.elt] if isinstance(value, ast.ListComp) else []
    for element in elements:
        inner = element.value if isinstance(element, ast.Starred) else element
        choices = [inner.body, inner.orelse] if isinstance(inner, ast.IfExp) else [inner]  # `Norm() if n else None`
        held = next((held for c in choices if (held := _one_state(context.values.of(c, scope), context))), "")
        if held:
            return held
    return ""


def _added(name: str, scopes: list[Scope], context: Context, of_self: bool = False) -> str:
    """Returns the state that functions add to a list or dict, by `x.append(...)` or `x[k] = ...`."""
    for scope in scopes:
        for call in scope.of(ast.Call):
            function = call.func
            if isinstance(function, ast.Attribute) and function.attr in ("append", "insert", "extend"):
                if call.args and _is_named(function.value, name, scope, of_self):
                    held = _one_state_of(call.args[-1], scope, context)
                    if held:
                        return held
        for node in scope.of(ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and _is_named(target.value, name, scope, of_self):
                    held = _one_state_of(node.value, scope, context)
                    if held:
                        return held
    return ""


def _is_named(node: ast.expr, name: str, scope: Scope, of_self: bool) -> bool:
    """Returns whether an expression is `name`, or `self.name`."""
    if of_self:
        return isinstance(node, ast.Attribute) and node.attr == name and is_self(node.value, scope) is not None
    return isinstance(node, ast.Name) and node.id == name


def _one_state_of(node: ast.expr, scope: Scope, context: Context) -> str:
    """Returns the state that an expression may be; of a name that is bound in several branches, one is enough."""
    held = _one_state(context.values.of(node, scope), context)
    if held or not isinstance(node, ast.Name):
        return held
    values = (
        context.values.binding(b, Frame.of(scope)) for b in reaching(scope.bindings.get(node.id, ()), node.lineno)
    )
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


def _as_list(value: ast.expr, context: Context) -> tuple[Edit, ...]:
    if not any(b.how == "import" and b.what == "flax.nnx" for b in context.file.bindings.get("nnx", ())):
        return ()
    start = (value.lineno, value.col_offset)
    return (replacement(start, start, "nnx.List("), insertion(value, ")"))
