# SPDX-License-Identifier: Apache-2.0
"""The arguments `missing=`, `unexpected=` and `rename=` of a restore, and the `rename=` that an error proposes."""

from __future__ import annotations

import dataclasses
import functools
import re
import urllib.parse
from collections import Counter, defaultdict
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
class Spelling:
    """The spelling of names in `rename=`; other libraries separate the parts by dots.

    Attributes:
        saved: A function from the name of an array in the checkpoint to its spelling.
        wanted: The spelling by the name of an array in the objects. Other names are spelled unchanged.
        separator: The separator of the levels.
        given: The user's `rename=`, if it differs from that of the policy.
        fits: A function that decides whether an array of the checkpoint may be restored into an array of the objects.
    """

    saved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wanted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    separator: str = "/"
    given: Rename = None
    fits: Callable[[str, str], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """The policy of a restore for names that are missing, unexpected or renamed.

    Attributes:
        missing: The arrays of the objects that may be missing from the checkpoint.
        unexpected: The arrays of the checkpoint that may have no place in the objects.
        rename: A map from names in the checkpoint to names in the objects.
        spelling: The form of the names in the `rename=` that errors propose.
        optional: The names that may always be missing.
        finds_layout: Whether objects are also searched below names other than their own.
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
        return any(
            self._matches(name, part) if isinstance(part, str) else isinstance(variable, part) for part in self.missing
        )

    def may_be_unexpected(self, name: str) -> bool:
        """Returns whether an array of the checkpoint may be left out."""
        if _is_of_watch(name):
            return True
        if isinstance(self.unexpected, str):
            return self.unexpected == "ignore"
        return any(self._matches(name, pattern) for pattern in self.unexpected)

    def _matches(self, name: str, pattern: str) -> bool:
        """Returns whether a pattern matches a name, or its beginning up to a separator."""
        name, pattern = (text.replace(self.spelling.separator, "/") for text in (name, pattern))
        return _compiled(pattern).match(name) is not None


def _is_of_watch(name: str) -> bool:
    """Returns whether a name is that of state which `tallax.watch` keeps in a model, and which it may have or not."""
    return f"/{urllib.parse.quote(WATCHED, safe='')}/" in f"/{name}"


def _is_pattern(part: Any, argument: str) -> bool:
    is_type = argument == "missing" and isinstance(part, type) and issubclass(part, nnx.Variable)
    return isinstance(part, str) or is_type


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    # `*` matches within one level, `**` any number of levels, and `**/` also zero levels.
    words: Mapping[str, str] = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/|$)", re.DOTALL)


_MOST = 200  # the most names that a proposal considers, so that an error is not delayed


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


# --- what an error proposes -------------------------------------------------------------------------------------------


def proposal(
    missing: Sequence[str],
    unexpected: Sequence[str],
    restored: Sequence[str],
    fits: Callable[[str, str], bool],
    spelling: Spelling,
) -> dict[str, str]:
    """Returns a `rename=` that maps unexpected arrays of the checkpoint to missing arrays of the objects.

    Arrays correspond if one may be restored into the other (`fits`) and the ends of their names are the same. If
    several arrays correspond, the longest common end counts. If no arrays correspond, and there is only one array on
    each side, they are assumed to be the same. A proposal must not move `restored` arrays, which already have a place.
    """
    apart = spelling.separator
    wanted = {name: tuple(spelling.wanted.get(name, name).split(apart)) for name in missing[:_MOST]}
    saved = {name: tuple(spelling.saved.get(name, name).split(apart)) for name in unexpected[:_MOST]}
    fixed = {apart.join(part) for name in restored for part in _beginnings(spelling.saved.get(name, name).split(apart))}
    by_end = defaultdict(list)
    for old, parts in saved.items():
        by_end[parts[-1]].append(old)
    pairs: Counter[tuple[str, str]] = Counter()
    ends: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for new, parts in wanted.items():
        fitting = [old for old in by_end[parts[-1]] if fits(old, new)]
        longest = max((_common_end(saved[old], parts) for old in fitting), default=0)
        for old in fitting:
            if _common_end(saved[old], parts) == longest:
                pair = _heads(saved[old], parts, longest, apart, fixed)
                pairs[pair] += 1
                ends[pair].add((old, new))
    result: dict[str, str] = {}
    done: set[str] = set()
    for pair, _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if pair[0] not in result and not any(old in done or new in done for old, new in ends[pair]):
            result[pair[0]] = pair[1]
            done |= {name for both in ends[pair] for name in both}
    if not result and len(missing) == len(unexpected) == 1 and fits(unexpected[0], missing[0]):
        result = {apart.join(saved[unexpected[0]]): apart.join(wanted[missing[0]])}
    return {old: new for old, new in result.items() if old != new}


def _common_end(left: Sequence[str], right: Sequence[str]) -> int:
    count = 0
    for one, other in zip(reversed(left), reversed(right), strict=False):
        if one != other:
            break
        count += 1
    return count


def _heads(old: Sequence[str], new: Sequence[str], common: int, apart: str, fixed: Iterable[str]) -> tuple[str, str]:
    """Returns the two names without their common end. Neither may be empty or move other arrays."""
    common = min(common, len(old) - 1, len(new) - 1)
    while common and apart.join(old[: len(old) - common]) in fixed:
        common -= 1
    return apart.join(old[: len(old) - common]), apart.join(new[: len(new) - common])


def _beginnings(parts: Sequence[str]) -> list[Sequence[str]]:
    return [parts[:k] for k in range(1, len(parts) + 1)]
