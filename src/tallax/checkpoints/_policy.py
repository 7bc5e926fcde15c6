# SPDX-License-Identifier: Apache-2.0
"""The arguments `missing=`, `unexpected=` and `rename=` of a restore."""

from __future__ import annotations

import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._walk import WATCHED
from tallax.variables import StateVariable

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None
Missing: TypeAlias = Literal["error", "state", "init"] | Sequence[str | type[nnx.Variable[Any]]]
Unexpected: TypeAlias = Literal["error", "ignore"] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The policy of a restore for names that are missing, unexpected or renamed.

    Attributes:
        missing: The arrays of the objects that may be missing from the checkpoint.
        unexpected: The arrays of the checkpoint that may have no place in the objects.
        rename: A map from names in the checkpoint to names in the objects.
        optional: The names that may always be missing.
        separator: The separator of the levels in patterns.
    """

    missing: Missing = "error"
    unexpected: Unexpected = "error"
    rename: Rename = None
    optional: frozenset[str] = frozenset()
    separator: str = "/"

    def __post_init__(self):
        check_rename(self.rename)
        for argument, value, words, example, kind in (
            ("missing", self.missing, ("error", "state", "init"), "**/step", True),
            ("unexpected", self.unexpected, ("error", "ignore"), "ema/**", False),
        ):
            if isinstance(value, str):
                if value in words:
                    continue
                fix = f"{argument}={words[0]!r}; or a list for patterns, {argument}=[{example!r}]"
                error: Any = InvalidValueError
            elif isinstance(value, Sequence) and all(isinstance(p, str) or (kind and _is_variable(p)) for p in value):
                continue
            else:
                fix, error = f"{argument}={words[0]!r}, or {argument}=[{example!r}]", InvalidTypeError
            raise error(
                argument,
                "must be a policy for names that only one side has.",
                got=describe(value),
                expected=", ".join(map(repr, words)) + ", or a list of patterns",
                fix=fix,
            )

    def may_be_missing(self, name: str, variable: Any) -> bool:
        """Returns whether an array of the objects may keep its value. The variable of a bare array is None."""
        if name in self.optional or self.missing == "init" or _is_of_watch(name):
            return True
        if isinstance(self.missing, str):
            return self.missing == "state" and isinstance(variable, StateVariable)
        kinds = tuple(part for part in self.missing if isinstance(part, type))
        return isinstance(variable, kinds) or self._matches(name, self.missing)

    def may_be_unexpected(self, name: str) -> bool:
        """Returns whether an array of the checkpoint may be left out."""
        if _is_of_watch(name):
            return True
        if isinstance(self.unexpected, str):
            return self.unexpected == "ignore"
        return self._matches(name, self.unexpected)

    def _matches(self, name: str, patterns: Iterable[Any]) -> bool:
        """Returns whether a pattern matches a name, or its beginning up to a separator."""
        name = name.replace(self.separator, "/")
        texts = (pattern.replace(self.separator, "/") for pattern in patterns if isinstance(pattern, str))
        return any(_compiled(text).match(name) for text in texts)


def _is_of_watch(name: str) -> bool:
    """Returns whether a name is that of state which `tallax.watch` keeps in a model, and which it may have or not."""
    return f"/{urllib.parse.quote(WATCHED, safe='')}/" in f"/{name}"


def _is_variable(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nnx.Variable)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    # `*` matches within one level, `**` any number of levels, and `**/` also zero levels.
    words: Mapping[str, str] = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/|$)", re.DOTALL)


def renamed(names: Iterable[str], rename: Rename, *, separator: str = "/") -> dict[str, str]:
    """Returns the new names.

    A mapping maps names, or beginnings of names up to a separator. The longest beginning counts.

    Raises:
        InvalidTypeError: `rename` is neither, or it does not return a name.
        InvalidValueError: A key of the mapping is not the beginning of any name, or two arrays get the same name.
    """
    names = list(names)
    check_rename(rename)
    if rename is None:
        return {name: name for name in names}
    if callable(rename):
        result = {name: rename(name) for name in names}
        for old, new in result.items():
            if not isinstance(new, str):
                raise InvalidTypeError(
                    "rename",
                    "must return a name for each array.",
                    got=f"{describe(new)} for {old!r}",
                    fix="return name, where it stays the same",
                )
    else:
        result, used = {}, set()
        for name in names:
            keys = [key for key in rename if f"{name}{separator}".startswith(f"{key}{separator}")]
            key = max(keys, key=len, default=None)
            result[name] = name if key is None else f"{rename[key]}{name[len(key) :]}"
            used.add(key)
        for key in rename:
            if key not in used:
                raise InvalidValueError(
                    "rename",
                    "must map names in the checkpoint to names in the objects.",
                    got=f"{key!r}, which is not the beginning of any name in the checkpoint",
                    expected=some(names),
                    fix="one of these names, or its beginning; or a function from name to name",
                )
    seen: dict[str, str] = {}
    for old, new in result.items():
        if new in seen:
            raise InvalidValueError(
                "rename",
                "must give each array a different name.",
                got=f"{new!r} for {seen[new]!r} and for {old!r}",
                fix="another name for one of them",
            )
        seen[new] = old
    return result


def check_rename(rename: Any) -> None:
    """Raises `InvalidTypeError` if a value is not a valid `rename`."""
    if rename is None or callable(rename):
        return
    if not isinstance(rename, Mapping) or not all(isinstance(name, str) for pair in rename.items() for name in pair):
        raise InvalidTypeError(
            "rename",
            "must be a function from name to name, or a mapping of names.",
            got=describe(rename),
            fix="rename={'model/old_name': 'model/new_name'}",
        )


def some(names: Iterable[str], most: int = 3) -> str:
    """Returns the first names and the number of others as text."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
