# SPDX-License-Identifier: Apache-2.0
"""What counts are increased by, before each was made a word of its own.

A step's increments are often entries of one vector. XLA makes a concatenation of its slices the vector itself, but not
if each is clamped and converted by itself, as `counter += n` does for an int32 `n`: a thousand small operations remain.
Where an increment is the only one of its count, the entry is therefore taken as it was, and what was done to each is
done to all of them at once (`Packing.plus`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from tallax._variables import AT_MOST


def with_sources(program: ClosedJaxpr, counts: int, *, kept: Collection[int]) -> ClosedJaxpr:
    """Returns a program that has, in the place of what is added to a count, what that was made of.

    Args:
        program: its first inputs, and its first outputs, are the bases of the counts and then what is added to them.
        counts: how many there are.
        kept: the numbers of those that stay as they are.

    Returns:
        The program, in which those outputs may be of any integer type, or boolean: a word is `unsigned` of them.
    """
    jaxpr = program.jaxpr
    made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    outputs = list(jaxpr.outvars)
    for number in set(range(counts)).difference(kept):
        source = _source(outputs[counts + number], jaxpr.invars[counts + number], made_by)
        if source is not None:
            outputs[counts + number] = source
    return program.replace(jaxpr=jaxpr.replace(outvars=outputs))


def _source(added: Any, before: Any, made_by: dict[Any, Any]) -> Any:
    """Returns the variable that a single increment was made of; None where there was none, or there were several."""
    total = _made(added, "add", made_by)
    if total is None or total.invars[0] is not before:
        return None
    named = _made(total.invars[1], "name", made_by)
    if named is None or not named.params["name"].startswith(AT_MOST):
        return None
    (variable,) = named.invars
    converted = _made(variable, "convert_element_type", made_by)
    if converted is None:
        return None
    (variable,) = converted.invars
    clamped = _made(variable, "max", made_by)
    if clamped is not None and _is_zero(clamped.invars[1]):
        variable = clamped.invars[0]
    # Whoever makes words of the sources clamps signed ones, so one that was not clamped here must have no sign.
    same_words = clamped is not None or not jnp.issubdtype(variable.aval.dtype, jnp.signedinteger)
    return variable if same_words and not isinstance(variable, Literal) else None


def _made(variable: Any, name: str, made_by: dict[Any, Any]) -> Any:
    equation = None if isinstance(variable, Literal) else made_by.get(variable)
    return equation if equation is not None and equation.primitive.name == name else None


def _is_zero(variable: Any) -> bool:
    return isinstance(variable, Literal) and variable.val == 0
