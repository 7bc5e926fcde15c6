# SPDX-License-Identifier: Apache-2.0
"""The comparison of a checkpoint with objects, by what both say of themselves: no array is read for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from tallax._errors import InvalidTypeError, InvalidValueError, RestoreError, compose, describe
from tallax.checkpoints._convert import converts, is_same_number
from tallax.checkpoints._leaves import stored_dtype
from tallax.checkpoints._manifest import Entry
from tallax.checkpoints._report import RestoreReport

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None
Missing: TypeAlias = Literal["error", "init"]
Unexpected: TypeAlias = Literal["error", "ignore"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a restore does about what differs.

    Attributes:
        missing: "init" keeps what the objects have where the checkpoint has nothing.
        unexpected: "ignore" leaves out what the checkpoint has beyond the objects.
        rename: from names in the checkpoint to those in the objects.
        optional: names that may be missing in any case.
    """

    missing: Missing = "error"
    unexpected: Unexpected = "error"
    rename: Rename = None
    optional: frozenset[str] = frozenset()

    def __post_init__(self):
        for argument, value, known in (
            ("missing", self.missing, ("error", "init")),
            ("unexpected", self.unexpected, ("error", "ignore")),
        ):
            if value not in known:
                raise InvalidValueError(
                    compose(
                        argument,
                        "says what is done about names that only one side has.",
                        got=describe(value),
                        expected=" or ".join(map(repr, known)),
                        fix=f"{argument}={known[0]!r}",
                    )
                )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be read, under which name the objects have it, and the report once that is done."""

    sources: dict[str, str]
    report: RestoreReport


def plan(saved: Mapping[str, Entry], wanted: Mapping[str, Entry], policy: Policy, *, told: Mapping[str, Any]) -> Plan:
    """Returns what to read for each name of the objects.

    Args:
        saved: what the checkpoint has.
        wanted: what the objects have.
        policy: what to do about what only one of them has.
        told: further fields of the report.

    Raises:
        InvalidTypeError: `rename` is no mapping of names and no function, or gives what is no name.
        InvalidValueError: `rename` says nothing of use, or gives two arrays one name.
        RestoreError: they differ more than the policy allows.
    """
    kept = {name: entry for name, entry in saved.items() if entry.persistent}
    names = renamed(kept, policy.rename)
    sources = {new: old for old, new in names.items()}
    persistent = {name: entry for name, entry in wanted.items() if entry.persistent}
    common = [name for name in persistent if name in sources]
    faults = {name: _fault(kept[sources[name]], persistent[name]) for name in common}
    report = RestoreReport(
        restored=tuple(name for name in common if faults[name] is None),
        missing=tuple(name for name in persistent if name not in sources),
        unexpected=tuple(old for old, new in names.items() if new not in persistent),
        reset=tuple(name for name, entry in wanted.items() if not entry.persistent and entry.resets),
        kept=tuple(name for name, entry in wanted.items() if not entry.persistent and not entry.resets),
        mismatched=tuple(f"{name}: {fault[0]}; expected {fault[1]}" for name, fault in faults.items() if fault),
        renamed=tuple((old, new) for old, new in names.items() if old != new),
        **told,
    )
    for name, fault in faults.items():
        if fault:
            raise mismatch(name, *fault, report)
    _refuse_by_policy(report, policy)
    return Plan({name: sources[name] for name in common}, report)


def renamed(names: Iterable[str], rename: Rename) -> dict[str, str]:
    """Returns the new name of each.

    Args:
        names: as the checkpoint has them.
        rename: a function; or a mapping from names, or beginnings of names up to a slash, the longest of which counts.

    Raises:
        InvalidTypeError: it is neither, or gives what is no name.
        InvalidValueError: a key of the mapping is the beginning of no name, or two arrays get one name.
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
                    compose(
                        "rename",
                        "gives each array a name.",
                        got=f"{describe(new)} for {old!r}",
                        fix="return name, where it stays the same",
                    )
                )
    else:
        result, used = {}, set()
        for name in names:
            keys = [key for key in rename if f"{name}/".startswith(f"{key}/")]
            key = max(keys, key=len, default=None)
            result[name] = name if key is None else f"{rename[key]}{name[len(key) :]}"
            used.add(key)
        for key in rename:
            if key not in used:
                raise InvalidValueError(
                    compose(
                        "rename",
                        "goes from names in the checkpoint to those in the objects.",
                        got=f"{key!r}, which is the beginning of no name in the checkpoint",
                        expected=_some(names),
                        fix="rename={'model/old_name': 'model/new_name'}, or a function from name to name",
                    )
                )
    seen: dict[str, str] = {}
    for old, new in result.items():
        if new in seen:
            raise InvalidValueError(
                compose(
                    "rename",
                    "gives each array a name of its own.",
                    got=f"{new!r} for {seen[new]!r} and for {old!r}",
                    fix="another name for one of them",
                )
            )
        seen[new] = old
    return result


def check_rename(rename: Any) -> None:
    """Raises where something is no `rename`."""
    if rename is None or callable(rename):
        return
    if not isinstance(rename, Mapping) or not all(isinstance(name, str) for pair in rename.items() for name in pair):
        raise InvalidTypeError(
            compose(
                "rename",
                "is a function from name to name, or a mapping of names.",
                got=describe(rename),
                fix="rename={'model/old_name': 'model/new_name'}",
            )
        )


def mismatch(name: str, got: str, expected: str, report: RestoreReport) -> RestoreError:
    """Returns the error of an array that does not fit; of several, the first one's."""
    others = len(report.mismatched) - 1
    error = RestoreError(
        compose(
            name,
            "the checkpoint has it in another form, and nothing is cast or cut in silence."
            + (f" (And {others} more: see the error's report.)" if others > 0 else ""),
            got=f"{got} in the checkpoint",
            expected=f"{expected}, as in the objects",
            fix="make the model as it was saved; or rename= what is no longer the same, with missing='init'",
        )
    )
    error.report = report
    return error


def _fault(saved: Entry, wanted: Entry) -> tuple[str, str] | None:
    """Returns how what was saved and what is wanted differ, where that can be told without the values."""
    if wanted.kind == "Counter" and saved.kind != "Counter":
        return None if converts(saved, wanted) else (str(saved), str(wanted))
    if (saved.kind == "Counter") != (wanted.kind == "Counter") and saved.kind:
        return str(saved), str(wanted)
    if is_same_number(saved, wanted):
        return None
    dtypes = {wanted.dtype} if saved.kind else {wanted.dtype, str(stored_dtype(wanted.dtype))}  # of keys and numbers
    if saved.shape != wanted.shape or saved.dtype not in dtypes:
        return str(saved), str(wanted)
    if saved.kind and (saved.owner, saved.configuration) != (wanted.owner, wanted.configuration):
        return _made(saved), _made(wanted)
    return None


def _made(entry: Entry) -> str:
    return f"{entry} of {entry.owner}({entry.configuration.strip('{}')})" if entry.owner else f"{entry} of no statistic"


def _refuse_by_policy(report: RestoreReport, policy: Policy) -> None:
    missing = [name for name in report.missing if name not in policy.optional]
    unexpected = [_with_reason(name, report) for name in report.unexpected]
    if missing and policy.missing == "error":
        error = RestoreError(
            compose(
                _some(missing),
                "is not in the checkpoint." if len(missing) == 1 else "are not in the checkpoint.",
                got=f"a checkpoint that has also {_some(unexpected)}" if unexpected else None,
                fix="missing='init' to keep what the objects have; or rename={'model/old_name': 'model/new_name'}",
            )
        )
    elif report.unexpected and policy.unexpected == "error":
        error = RestoreError(
            compose(
                _some(unexpected),
                "in the checkpoint, and not in the objects.",
                fix="unexpected='ignore' to leave it out; hand in all objects that were saved; or rename=",
            )
        )
    else:
        return
    error.report = report
    raise error


def _with_reason(name: str, report: RestoreReport) -> str:
    """Returns a name that only the checkpoint has, with what explains that."""
    new = dict(report.renamed).get(name, name)
    if new in report.reset or new in report.kept:
        return f"{name} (persistent=False in the objects)"
    return name if new == name else f"{name} (renamed to {new})"


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
