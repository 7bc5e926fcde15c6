# SPDX-License-Identifier: Apache-2.0
"""Infers dtypes and weak types of arrays from the source.

The rules are those of `jax.numpy` (measured on jax 0.10 and 0.12): `jnp.array(0.5)` and `jnp.full(shape, 0.5)` are
weakly typed, also through `jnp.log`, `jnp.clip` and arithmetic with Python numbers; `jnp.ones(shape)`,
`jnp.array([0.5])` and calls with a dtype are not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from tallax.lint._array_names import (
    CREATING,
    DEVICE_COUNTS,
    DTYPES,
    ELEMENTWISE,
    FLOATING,
    KEEPING,
    MATH_FLOATS,
    MATH_INTS,
    REDUCING,
)
from tallax.lint._kinds import Array, Items, Name, Number, Plain, Value

Work = Callable[[ast.expr], "Value | None"]


def dtype_word(node: ast.expr | None) -> str:
    """Returns the name of a dtype as written: `jnp.int32`, `"int32"`, `int`; empty if it is unknown."""
    if isinstance(node, ast.Attribute):
        return node.attr if node.attr in DTYPES else ""
    if isinstance(node, ast.Name):
        return {"int": "int", "float": "float", "bool": "bool"}.get(node.id, node.id if node.id in DTYPES else "")
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _argument(node: ast.Call, place: int | None, word: str) -> ast.expr | None:
    for keyword in node.keywords:
        if keyword.arg == word:
            return keyword.value
    if (
        place is not None
        and place < len(node.args)
        and not any(isinstance(a, ast.Starred) for a in node.args[: place + 1])
    ):
        return node.args[place]
    return None


def made(name: str, node: ast.Call, work: Work) -> Value | None:
    """Returns the result of a call of a function of jax, NumPy or math, by its canonical name."""
    module, _, last = name.rpartition(".")
    if name in DEVICE_COUNTS:
        return Number("int")
    if name in MATH_FLOATS or name in MATH_INTS:
        return Number("float" if name in MATH_FLOATS else "int")
    if module in ("jnp", "np"):
        return _numpy(module, last, node, work)
    if module == "nnx.initializers" or module == "jax.nn.initializers":
        return Name(f"{module}()") if not last.endswith("()") else None
    if name.endswith("initializers()"):
        return Array(False, "float")
    if module == "jax.random":
        if last in ("key", "PRNGKey", "split", "fold_in"):
            return Plain("key")
        return Array(False, "int" if last in ("randint", "permutation", "categorical") else "float")
    if module == "jax.nn":
        return Array(None, "float", _state([work(a) for a in node.args[:1]]))
    if module == "jnp.linalg" or module == "jnp.fft":
        return Array(None, "float", _state([work(a) for a in node.args[:1]]))
    if name in ("jax.lax.psum", "jax.lax.pmean", "jax.lax.pmax", "jax.lax.stop_gradient") and node.args:
        return work(node.args[0])
    return None


def _numpy(module: str, last: str, node: ast.Call, work: Work) -> Value | None:
    if last in DTYPES:
        inner = work(node.args[0]) if node.args else None
        size = isinstance(inner, Number) and inner.size
        return Number("int", size=True) if size and "int" in last else Array(False, last, _state([inner]), scalar=True)
    if last in ("array", "asarray"):
        return _array(module, node, work)
    if last == "full":
        dtype = _argument(node, 2, "dtype")
        fill = (
            work(node.args[1])
            if len(node.args) > 1
            else work(f)
            if (f := _argument(node, None, "fill_value"))
            else None
        )
        if dtype is not None:
            return Array(False, dtype_word(dtype), None, _is_scalar_shape(node.args[0] if node.args else None))
        if isinstance(fill, Number):
            weak = module == "jnp" and fill.type != "bool"
            return Array(weak, fill.type, None, _is_scalar_shape(node.args[0] if node.args else None))
        return Array(fill.weak if isinstance(fill, Array) else None, fill.dtype if isinstance(fill, Array) else "")
    if last in CREATING:
        place = {"linspace": 4, "arange": 3, "eye": 3}.get(last, 1)
        dtype = _argument(node, None if last in ("tril", "triu", "concatenate", "stack") else place, "dtype")
        word = dtype_word(dtype) if dtype is not None else CREATING[last]
        if last == "arange" and dtype is None:
            word = "float" if any(isinstance(v := work(a), Number) and v.type == "float" for a in node.args) else "int"
        scalar = _is_scalar_shape(node.args[0] if node.args else None) if last in ("zeros", "ones", "empty") else False
        weak = False if last not in ("concatenate", "stack", "tril", "triu") else None
        return Array(weak, word, None, scalar)
    if last.endswith("_like"):
        dtype = _argument(node, 1, "dtype")
        return Array(False if dtype is not None else None, dtype_word(dtype))
    if last in ("shape", "size", "ndim"):
        return Number("int", size=last == "size")
    if last in ELEMENTWISE:
        return _elementwise(module, last, node, work)
    if last in REDUCING or module == "jnp":
        values = [work(argument) for argument in node.args]
        dtype = "bool" if last in ("all", "any", "isnan", "isfinite", "logical_and", "logical_or") else ""
        if last == "sum" and values and isinstance(values[0], Array):
            dtype = "int" if values[0].dtype == "bool" else values[0].dtype
        if last == "where" and len(values) == 3:
            both = combined(values[1], values[2], ast.Add())
            return both if isinstance(both, Array) else Array(None, "", _state(values))
        return Array(None if last not in REDUCING else False, dtype, _state(values))
    return None


def _array(module: str, node: ast.Call, work: Work) -> Value | None:
    dtype = _argument(node, 1, "dtype")
    value = work(node.args[0]) if node.args else None
    scalar = (
        True
        if isinstance(value, Number)
        else value.scalar
        if isinstance(value, Array)
        else False
        if isinstance(value, Items)
        else None
    )
    if dtype is not None:
        return Array(False, dtype_word(dtype), _state([value]), scalar)
    if isinstance(value, Number):
        return Array(module == "jnp" and value.type in ("int", "float"), value.type, _state([value]), True)
    if isinstance(value, Array):
        return Array(value.weak if module == "jnp" else False, value.dtype, value.state, value.scalar)
    if isinstance(value, Items):
        first = value.items[0] if value.items else value.each
        return Array(False, first.type if isinstance(first, Number) else "", None, False)
    return Array(None, "", None, scalar)


def _elementwise(module: str, last: str, node: ast.Call, work: Work) -> Value | None:
    shaping = last in ("reshape", "broadcast_to", "expand_dims", "tile", "repeat", "squeeze", "transpose")
    values = [work(argument) for argument in (node.args[:1] if shaping else node.args)]
    state = _state(values)
    if module == "np" or not values:
        return Array(False, "float" if last in FLOATING else "", state)
    weak: bool | None = True
    for value in values:
        if isinstance(value, Array) and value.weak is False:
            weak = False
            break
        if not isinstance(value, Number) and not (isinstance(value, Array) and value.weak):
            weak = None
    first = values[0]
    dtype = (
        "float"
        if last in FLOATING
        else first.dtype
        if isinstance(first, Array)
        else first.type
        if isinstance(first, Number)
        else ""
    )
    if weak is False and dtype == "int":
        dtype = ""
    return Array(weak, dtype, state)


def method(base: Array, name: str, node: ast.Call, work: Work) -> Value | None:
    """Returns the result of a method of an array."""
    state = "derived" if base.state else None
    if name == "astype":
        return Array(
            False, dtype_word(node.args[0] if node.args else _argument(node, None, "dtype")), state, base.scalar
        )
    if name in ("tolist",):
        return Plain("list")
    if name in KEEPING:
        return Array(base.weak, base.dtype, state)
    if name in REDUCING:
        dtype = base.dtype
        if name == "sum" and dtype == "bool":
            dtype = "int"
        if name in ("mean", "var", "std"):
            dtype = "float"
        return Array(False if name in ("sum", "mean", "var", "std") else base.weak, dtype, state)
    del work
    return None


def combined(left: Value | None, right: Value | None, operator: ast.operator) -> Value | None:
    """Returns the result of arithmetic on two values."""
    if isinstance(left, Number) and isinstance(right, Number):
        kind = "float" if isinstance(operator, ast.Div) or "float" in (left.type, right.type) else "int"
        return Number(kind, left.size or right.size, "derived" if left.state or right.state else None)
    if not isinstance(left, Array) and not isinstance(right, Array):
        return None
    state = _state([left, right])
    if left is None or right is None or isinstance(left, Plain) or isinstance(right, Plain):
        known = left if isinstance(left, Array) else right
        assert isinstance(known, Array)
        return Array(False if known.weak is False and _floats(known.dtype) else None, "", state)
    weak = all(isinstance(side, Number) or (isinstance(side, Array) and side.weak) for side in (left, right))
    if not weak and any(isinstance(side, Array) and side.weak is None for side in (left, right)):
        strong = any(isinstance(side, Array) and side.weak is False for side in (left, right))
        return Array(False if strong else None, "", state)
    words = [
        side.dtype if isinstance(side, Array) else side.type if isinstance(side, Number) else ""
        for side in (left, right)
    ]
    strong_words = [
        w for w, side in zip(words, (left, right), strict=True) if isinstance(side, Array) and not side.weak
    ]
    dtype = words[0] if words[0] == words[1] else strong_words[0] if len(strong_words) == 1 else ""
    if "float" in words and dtype in ("int", "bool"):
        dtype = "float"
    if isinstance(operator, ast.Div) and dtype in ("int", "bool", "int32", "uint32"):
        dtype = "float"
    return Array(weak, dtype, state, _both_scalar(left, right))


def _both_scalar(left: Value | None, right: Value | None) -> bool | None:
    sides = [
        True if isinstance(side, Number) else side.scalar if isinstance(side, Array) else None for side in (left, right)
    ]
    return True if sides == [True, True] else None


def _floats(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _is_scalar_shape(node: ast.expr | None) -> bool | None:
    if isinstance(node, ast.Tuple):
        return not node.elts or (
            len(node.elts) == 1 and isinstance(node.elts[0], ast.Constant) and node.elts[0].value == 1
        )
    if isinstance(node, ast.Constant):
        return node.value == 1
    return None


def _state(values: list[Value | None]) -> str | None:
    return "derived" if any(isinstance(v, (Array, Number)) and v.state for v in values) else None
