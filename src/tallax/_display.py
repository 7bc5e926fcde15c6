# SPDX-License-Identifier: Apache-2.0
"""How items look in notebooks: by treescope, within the tree of their model, and alone as HTML.

Flax shows a model as a tree, by `__treescope_repr__`; IPython shows an object alone by `_repr_mimebundle_`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tallax.runs._html import bars, table
from tallax.runs._number_format import number
from tallax.runs._record import Bins

_NOTE = 120  # characters


def tree(thing: Any, attributes: Mapping[str, Any], note: str, path: str | None, subtree_renderer: Any) -> Any:
    """Returns treescope's rendering of an object: its attributes, and in its first line a note.

    Args:
        thing: the object.
        attributes: what to show of it.
        note: a line of text, cut where it is long.
        path: as treescope passes it.
        subtree_renderer: likewise.
    """
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


def bundle(html: str) -> dict[str, str]:
    """Returns what IPython shows of an object alone.

    An object that has `_repr_html_` would have it below its tree as well, which says the same.
    """
    return {"text/html": html}


def card(title: str, value: Any, bins: Bins | None = None) -> str:
    """Returns an object as HTML: its title, the fields of its value, and its bins as a picture.

    Args:
        title: of what.
        value: a record, whose fields are listed; a number or an array, which has one row; or None for neither.
        bins: what is distributed how.
    """
    rows: list[tuple[str, str]] = []
    if bins is not None and bins.total:
        rows.append(("", bars(bins)))
    if dataclasses.is_dataclass(value):
        known = () if bins is None else ("counts", "edges", "buckets", "relative_error", "mantissa_bits")
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        rows += [(name, worded(field)) for name, field in fields.items() if name not in known]
    elif value is not None:
        rows.append(("value", worded(value)))
    return table(title, ("", ""), rows)


def worded(value: Any) -> str:
    """Returns a value as text: integers in full, arrays of many entries cut."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=16, edgeitems=4, separator=", ")
    return str(value)
