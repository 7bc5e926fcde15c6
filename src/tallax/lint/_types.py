# SPDX-License-Identifier: Apache-2.0
"""Infers kinds of values from annotations."""

from __future__ import annotations

import ast

from tallax.lint._classes import Classes
from tallax.lint._index import Scope
from tallax.lint._kinds import NOTHING, Array, Instance, Items, Name, Number, Plain, Type, Value, Variable, joined
from tallax.lint._known_names import NOT_NODES, VARIABLES, canonical


class Types(Classes):
    """The kinds of objects of annotated types."""

    def annotated(self, node: ast.expr, scope: Scope) -> Value | None:
        """Returns the kind of a value with an annotated type."""
        if isinstance(node, ast.Constant):
            if node.value is None:
                return NOTHING
            if isinstance(node.value, str):
                try:
                    parsed = ast.parse(node.value, mode="eval").body
                except (SyntaxError, ValueError, RecursionError, MemoryError):
                    return None
                for inner in ast.walk(parsed):
                    inner.lineno = node.lineno  # type: ignore[attr-defined]
                return self.annotated(parsed, scope)
            return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return joined(
                [v for v in (self.annotated(node.left, scope), self.annotated(node.right, scope)) if v != NOTHING]
            )
        if isinstance(node, ast.Subscript):
            return self._parametrised(node, scope)
        value = self.of(node, scope)
        if isinstance(value, Type):
            return self.instance(value.cls) if not isinstance(value.cls, str) else self.named(value.cls)
        return self.named(value.name) if isinstance(value, Name) else None

    def _parametrised(self, node: ast.Subscript, scope: Scope) -> Value | None:
        base = self.of(node.value, scope)
        last = base.name.rpartition(".")[2] if isinstance(base, Name) else ""
        inner = node.slice
        if last == "Optional":
            return self.annotated(inner, scope)
        if last in ("Annotated", "ClassVar", "Final"):
            return self.annotated(inner.elts[0] if isinstance(inner, ast.Tuple) else inner, scope)
        if last in ("list", "List", "Sequence", "Iterable", "set"):
            return Items(each=self.annotated(inner, scope))
        if last in ("tuple", "Tuple"):
            elements = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if len(elements) == 2 and isinstance(elements[1], ast.Constant) and elements[1].value is Ellipsis:
                return Items(each=self.annotated(elements[0], scope))
            return Items(tuple(self.annotated(element, scope) for element in elements))
        if last in ("type", "Type"):
            made = self.annotated(inner, scope)
            return Type(made.cls) if isinstance(made, Instance) else Plain(last)
        if last in ("dict", "Dict", "Mapping", "Callable", "Literal"):
            return Plain(last)
        if last in (
            "Float",
            "Int",
            "UInt",
            "Bool",
            "Num",
            "Inexact",
            "Shaped",
            "Complex",
            "Integer",
        ):  # jaxtyping
            return Array()
        return self.annotated(node.value, scope)

    def named(self, name: str) -> Value | None:
        """Returns the kind of an object of another library's type."""
        name = canonical(name)
        if name in VARIABLES:
            return Variable(name)
        if name in ("int", "float", "bool"):
            return Number(name)
        if name in ("str", "bytes", "dict", "set", "None"):
            return Plain(name)
        if name in ("jax.Array", "jnp.ndarray", "np.ndarray", "chex.Array", "jaxtyping.Array", "jax.typing.ArrayLike"):
            return Array()
        if name.startswith("nnx.") and name[4:5].isupper() and name not in NOT_NODES:
            return Instance(name)
        return None

    def instance(self, cls: Scope) -> Value | None:
        """Returns the kind of an object of a class of the project."""
        kind = self.variable_type(cls)
        return Variable(kind, cls=cls) if kind else Instance(cls)
