# SPDX-License-Identifier: Apache-2.0
"""Values that a record is written without, because they cannot be written or are excluded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tallax._errors import InvalidTypeError, compose, describe
from tallax.runs._keys import matches

_LONG = 200  # characters of a name or an error; the rest is cut


@dataclass(frozen=True)
class Omission:
    """A value that a record is written without.

    Attributes:
        name: The name of the value.
        rule: The reason, a sentence that completes "<name>: ...".
        got: The value, or the error that it caused.
        fix: The fix.
    """

    name: str
    rule: str
    got: str
    fix: str

    @classmethod
    def of_error(cls, name: str, error: BaseException, *, doing: str = "written") -> Omission:
        """Returns the omission for a value that caused an error."""
        rule = f"cannot be {doing}, and is left out of the records."
        return cls(
            name, rule, error_text(error), "Logger(..., exclude=...) with this name leaves it out without a warning"
        )


def warn(omissions: Sequence[Omission]) -> None:
    """Warns of all omitted values in one warning, at the line that called the Logger."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for omission in omissions:
        alike.setdefault((omission.rule, omission.got, omission.fix), []).append(_shown(omission.name))
    labels = {reason: ", ".join(names) for reason, names in alike.items()}
    texts = [compose(label, rule, got=got, fix=fix) for (rule, got, fix), label in labels.items()]
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("tallax.logging"):
        level, frame = level + 1, frame.f_back
    # An error may quote a name that cannot be encoded, so it could not be printed.
    text = "\n".join(texts).encode(errors="backslashreplace").decode()
    warnings.warn(text, UserWarning, stacklevel=level)


def _shown(name: str) -> str:
    text = name if name.isprintable() and name else repr(name)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def error_text(error: BaseException) -> str:
    """Returns the kind of an error and the first line of its text."""
    try:
        text = str(error).partition("\n")[0]
    except Exception:
        text = "(its text cannot be made)"
    text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 2 * _LONG else f"{text[: 2 * _LONG - 3]}..."


def described(value: object) -> str:
    """Like `describe`, but if the text of a value cannot be made, returns its type."""
    try:
        return describe(value)
    except Exception:
        return type(value).__name__


class Exclusion:
    """The names that the user excludes from records, as shell patterns. A pattern also matches all names below it.

    Raises:
        InvalidTypeError: A pattern is not a str, or is empty.
    """

    def __init__(self, patterns: str | Sequence[str] | None):
        chosen: Any = () if patterns is None else (patterns,) if isinstance(patterns, str) else patterns
        if not isinstance(chosen, Sequence | set | frozenset) or not all(isinstance(p, str) and p for p in chosen):
            raise InvalidTypeError(
                "Logger",
                "exclude= must be a pattern of names, or a sequence of patterns.",
                got=described(patterns),
                fix="exclude='freqs', or exclude=['*/mask', 'gate/*']",
            )
        self._unused = list(dict.fromkeys(chosen))
        self._patterns = tuple(self._unused)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __contains__(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            used = [pattern for pattern in self._patterns if matches(name, [pattern])]
            self._unused = [pattern for pattern in self._unused if pattern not in used]
            known = self._known[name] = bool(used)
        return known

    def unused(self) -> list[Omission]:
        """Returns the text of a warning about patterns that no name has matched."""
        rule = "no name matches this pattern of exclude=, so it leaves out nothing."
        fix = "a name as the records have it, such as 'gate/fired'; '*' also matches slashes"
        return [Omission("Logger", rule, ", ".join(map(repr, self._unused)), fix)] if self._unused else []
