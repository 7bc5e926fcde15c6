# SPDX-License-Identifier: Apache-2.0
"""`missing=` and `unexpected=`: what a restore does about names that only one side has."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, compose, describe
from tallax.checkpoints._rename import Rename, Spelling, check_rename
from tallax.variables import StateVariable

Missing: TypeAlias = Literal["error", "state", "init"] | Sequence[str | type[nnx.Variable[Any]]]
Unexpected: TypeAlias = Literal["error", "ignore"] | Sequence[str]


@dataclasses.dataclass(frozen=True)
class Policy:
    """The policy of a restore for names that are missing, unexpected or renamed.

    Attributes:
        missing: which arrays of the objects may be missing from the checkpoint.
        unexpected: which arrays of the checkpoint may have no place in the objects.
        rename: from names in the checkpoint to those in the objects.
        spelling: how errors spell names in a `rename=` that they propose.
        optional: names that may be missing in any case.
        finds_layout: whether objects are looked for below other names than their own.
    """

    missing: Missing = "error"
    unexpected: Unexpected = "error"
    rename: Rename = None
    spelling: Spelling = dataclasses.field(default_factory=Spelling)
    optional: frozenset[str] = frozenset()
    finds_layout: bool = True

    def __post_init__(self):
        check_rename(self.rename)
        for argument, value, words, example in (
            ("missing", self.missing, ("error", "state", "init"), "**/step"),
            ("unexpected", self.unexpected, ("error", "ignore"), "ema/**"),
        ):
            if isinstance(value, str):
                if value in words:
                    continue
                fix = f"{argument}={words[0]!r}; or a list for patterns, {argument}=[{example!r}]"
                error: Any = InvalidValueError
            elif isinstance(value, Sequence) and all(_is_pattern(part, argument) for part in value):
                continue
            else:
                fix, error = f"{argument}={words[0]!r}, or {argument}=[{example!r}]", InvalidTypeError
            raise error(
                compose(
                    argument,
                    "says what is done about names that only one side has.",
                    got=describe(value),
                    expected=", ".join(map(repr, words)) + ", or a list of patterns",
                    fix=fix,
                )
            )

    def may_be_missing(self, name: str, variable: Any) -> bool:
        """Tells whether an array of the objects may keep its value.

        Args:
            name: of the array.
            variable: the Variable that holds it; None for an array that is in none.
        """
        if name in self.optional or self.missing == "init":
            return True
        if isinstance(self.missing, str):
            return self.missing == "state" and isinstance(variable, StateVariable)
        return any(
            self._matches(name, part) if isinstance(part, str) else isinstance(variable, part) for part in self.missing
        )

    def may_be_unexpected(self, name: str) -> bool:
        """Tells whether an array of the checkpoint may be left out."""
        if isinstance(self.unexpected, str):
            return self.unexpected == "ignore"
        return any(self._matches(name, pattern) for pattern in self.unexpected)

    def _matches(self, name: str, pattern: str) -> bool:
        """Tells whether a pattern is that of a name, or of its beginning up to a separator."""
        name, pattern = (text.replace(self.spelling.separator, "/") for text in (name, pattern))
        return _compiled(pattern).match(name) is not None


def _is_pattern(part: Any, argument: str) -> bool:
    is_type = argument == "missing" and isinstance(part, type) and issubclass(part, nnx.Variable)
    return isinstance(part, str) or is_type


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    # `*` stays within one level, `**` takes any number of them, `**/` also none.
    words: Mapping[str, str] = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/|$)", re.DOTALL)
