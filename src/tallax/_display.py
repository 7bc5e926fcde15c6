# SPDX-License-Identifier: Apache-2.0
"""Displays tallax variables and statistics in notebooks: with treescope within the tree of a model, and alone as HTML.

Flax shows a model as a tree by calling `__treescope_repr__`. IPython shows a single object by `_repr_mimebundle_`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tallax.runs._number_format import number
from tallax.runs._record import Bins

_NOTE = 120  # characters


def tree(thing: Any, attributes: Mapping[str, Any], note: str, path: str | None, subtree_renderer: Any) -> Any:
    """Returns treescope's rendering of an object: its attributes, with a note in the first line."""
    from treescope import rendering_parts as parts

    said = note if len(note) <= _NOTE else note[: _NOTE - 3] + "..."
    lines = []
    for k, (name, value) in enumerate(attributes.items()):
        comma = "," if k + 1 < len(attributes) else ""
        space = parts.fold_condition(collapsed=parts.text(" ")) if comma else parts.text("")
        drawn = subtree_renderer(value, path=None if path is None else f"{path}.{name}")
        named = parts.siblings_with_annotations(f"{name}=", drawn)
        lines.append(parts.build_full_line_with_annotations(named, comma, space))
    comment = parts.fold_condition(
        collapsed=parts.comment_color(parts.text(f"/* {said} */ ")),
        expanded=parts.comment_color(parts.text(f"  # {said}")),
    )
    opened = parts.siblings(parts.maybe_qualified_type_name(type(thing)), "(", comment if said else "")
    return parts.build_foldable_tree_node_from_children(prefix=opened, children=lines, suffix=")", path=path)


def card(title: str, value: Any, bins: Bins | None = None) -> dict[str, str]:
    """Returns the representation of a single object in IPython: a title, and a value.

    If the class had `_repr_html_` instead, IPython would show the same content twice, as HTML and as a tree.

    Args:
        title: The title.
        value: A record, whose fields are listed, a number or an array in one row, or None.
        bins: The bins of a histogram to draw instead of those fields.
    """
    from tallax.runs._html import table, value_text  # only notebooks need it, and `Counter` imports this file

    rows: list[tuple[str, str]] = []
    if bins is not None and bins.total:
        rows.append(("", value_text(bins)))
    if dataclasses.is_dataclass(value):
        known = () if bins is None else ("counts", "edges", "buckets", "relative_error", "mantissa_bits")
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        rows += [(name, worded(field)) for name, field in fields.items() if name not in known]
    elif value is not None:
        rows.append(("value", worded(value)))
    return {"text/html": table(title, ("", ""), rows)}


def worded(value: Any) -> str:
    """Returns a value as text: integers in full, long arrays truncated."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=16, edgeitems=4, separator=", ")
    return str(value)
