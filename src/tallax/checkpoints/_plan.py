# SPDX-License-Identifier: Apache-2.0
"""Stage 3 of a restore: compares the entries of a checkpoint with those of the objects, and reads no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp

from tallax._errors import RestoreError
from tallax.checkpoints._collect import Target
from tallax.checkpoints._manifest import Entry, Manifest
from tallax.checkpoints._policy import Policy, proposal, renamed, some
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._prefixes import Layout, Wanted, layout_of
from tallax.checkpoints._serialize import KEY, PYTHON, stored_dtype


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """The result of a restore, by name.

    Attributes:
        restored: The names whose value now is that of the checkpoint.
        missing: The names that the checkpoint does not have. They kept their value.
        unexpected: The names in the checkpoint that the objects do not have. They were not read.
        reset: The names of state with `persistent=False`, which now has its reset value.
        kept: The names of state with `persistent=False` and no reset value, such as a `Buffer`. It kept its value.
        converted: The names of values that were converted, with the old and the new form, such as an old counter that
            became exact.
        warnings: The names of values that may have been inexact before they were saved.
        mismatched: The names whose kind, shape or dtype differs; only in the report of an error.
        renamed: Pairs of a name in the checkpoint and its new name by `rename`.
        step: The number under which `Checkpoints` saved it, or None.
        extra: The value that was saved as `extra=`.
    """

    restored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    step: int | None = None
    extra: Any = None

    def __str__(self) -> str:
        """Returns the number of restored arrays, and a line for each other name. A renamed level has one line."""
        lines = [f"restored: {len(self.restored)}" + (f", from step {self.step}" if self.step is not None else "")]
        renamed = tuple(dict.fromkeys(_without_common_end(old, new) for old, new in self.renamed))
        kinds = (
            ("missing, kept as it was", self.missing),
            ("unexpected, not read", self.unexpected),
            ("reset", self.reset),
            ("not saved, kept as it was", self.kept),
            ("mismatched", self.mismatched),
            ("renamed", renamed),
            ("converted", self.converted),
            ("warning", self.warnings),
        )
        lines += [f"{label}: {name}" for label, names in kinds for name in names]
        return "\n".join(lines)


def _without_common_end(old: str, new: str) -> str:
    before, after = old.split("/"), new.split("/")
    while before and len(after) > 1 and before[-1] == after[-1]:
        del before[-1], after[-1]
    return f"{'/'.join(before) or 'the top level'} -> {'/'.join(after)}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The arrays to read by their names in the objects, and the report of the restore."""

    sources: dict[str, str]
    report: RestoreReport


def plan_restore(manifest: Manifest, target: Target, policy: Policy) -> Plan:
    """Compares the entries of a checkpoint with those of the objects, without reading an array.

    Raises:
        InvalidTypeError: `rename` returned something other than a name.
        InvalidValueError: `rename` matches nothing, or gives two arrays one name.
        RestoreError: The two differ more than the policy allows.
    """
    wanted, objects = target.entries, target.objects
    saved = {name: entry for name, entry in manifest.entries.items() if entry.persistent}
    names, rivals = _places(saved, wanted, objects, policy)
    sources = {new: old for old, new in names.items()}
    persistent = {name: entry for name, entry in wanted.items() if entry.persistent}
    common = [name for name in persistent if name in sources]
    faults = {name: _fault(saved[sources[name]], persistent[name]) for name in common}
    report = RestoreReport(
        restored=tuple(name for name in common if faults[name] is None),
        missing=tuple(name for name in persistent if name not in sources),
        unexpected=tuple(old for old, new in names.items() if new not in persistent),
        reset=tuple(name for name, entry in wanted.items() if not entry.persistent and entry.resets),
        kept=tuple(name for name, entry in wanted.items() if not entry.persistent and not entry.resets),
        mismatched=tuple(f"{name}: {fault[0]}; expected {fault[1]}" for name, fault in faults.items() if fault),
        renamed=tuple((sources[name], name) for name in common if sources[name] != name),
        step=manifest.step,
        extra=manifest.extra,
    )
    for name, fault in faults.items():
        if fault:
            raise mismatch(name, sources[name], *fault, report, policy)
    fix = _proposed(report, saved, persistent, sources, policy)
    _refuse_nothing(report, persistent, objects, policy, rivals, fix)
    _refuse_by_policy(report, policy, target.variables, names, fix)
    return Plan({name: sources[name] for name in common}, report)


def places(saved: Mapping[str, Entry], wanted: Mapping[str, Entry], objects: Collection[str]) -> dict[str, str]:
    """Returns the name in the objects of each array of a checkpoint that has a place in them."""
    names, _ = _places(saved, wanted, objects, Policy())
    return {old: new for old, new in names.items() if new in wanted}


def _places(
    saved: Mapping[str, Entry], wanted: Mapping[str, Entry], objects: Collection[str], policy: Policy
) -> tuple[dict[str, str], Mapping[str, tuple[str, ...]]]:
    """Returns the new name of each array, and the prefixes that compete for an object."""
    first = renamed(saved, policy.rename)
    if not policy.finds_layout:
        return first, {}
    parts = {}
    for name in objects:
        own = {key.removeprefix(f"{name}/"): entry for key, entry in wanted.items() if key.startswith(f"{name}/")}
        parts[name] = Wanted.of(own, [key for key, entry in own.items() if entry.kind == "Param"])
    pinned = [new for old, new in first.items() if old != new]
    layout: Layout = layout_of(list(first.values()), parts, pinned=pinned)
    return {old: layout.names[new] for old, new in first.items()}, layout.rivals


def mismatch(name: str, source: str, got: str, expected: str, report: RestoreReport, policy: Policy) -> RestoreError:
    """Returns the error for the first array that does not fit."""
    others = len(report.mismatched) - 1
    spelled = policy.spelling.saved.get(source, source)
    error = RestoreError(
        name,
        "the shape or dtype differs from the checkpoint, and tallax never casts implicitly."
        + (f" (And {others} more: see the error's report.)" if others > 0 else ""),
        got=f"{got} in the checkpoint",
        expected=f"{expected}, as in the objects",
        fix="create the model as it was saved; or to ignore it, "
        f"rename={{{spelled!r}: 'unused'}}, missing=[{name!r}], unexpected=[{source!r}]",
    )
    error.report = report
    return error


def _fault(saved: Entry, wanted: Entry) -> tuple[str, str] | None:
    """Returns the difference of a saved entry from the expected entry, as far as it is known without the values."""
    if wanted.kind == "Counter" and saved.kind != "Counter":
        return None if converts(saved, wanted) else (str(saved), str(wanted))
    if (saved.kind == "Counter") != (wanted.kind == "Counter") and saved.kind:
        return str(saved), str(wanted)
    if is_same_number(saved, wanted):
        return None
    if POSITION in (saved.kind, wanted.kind):  # positions differ in length; the iterator itself knows which it accepts
        return None if saved.kind == wanted.kind else (str(saved), str(wanted))
    stored = str(stored_dtype(wanted.dtype, widened=False))  # of keys and numbers of Python's
    dtypes = {wanted.dtype} if saved.kind else {wanted.dtype, stored}
    if saved.shape != wanted.shape or saved.dtype not in dtypes:
        return str(saved), str(wanted)
    if saved.kind and (saved.owner, saved.configuration) != (wanted.owner, wanted.configuration):
        return _made(saved), _made(wanted)
    return None


def _made(entry: Entry) -> str:
    return f"{entry} of {entry.owner}({entry.configuration.strip('{}')})" if entry.owner else f"{entry} of no statistic"


def _proposed(
    report: RestoreReport,
    saved: Mapping[str, Entry],
    wanted: Mapping[str, Entry],
    sources: Mapping[str, str],
    policy: Policy,
) -> str:
    """Returns a `rename=` for arrays without a place, as users would write it, or an empty string."""
    if not (report.missing and report.unexpected):
        return ""
    mapping = proposal(
        report.missing,
        report.unexpected,
        [sources[name] for name in report.restored],
        policy.spelling.fits or (lambda old, new: _fault(saved[old], wanted[new]) is None),
        policy.spelling,
    )
    given = policy.rename if policy.spelling.given is None else policy.spelling.given
    if not mapping or (callable(given) and policy.finds_layout):
        return ""
    return f"rename={ {**(given if isinstance(given, Mapping) else {}), **mapping} }"


def _refuse_nothing(
    report: RestoreReport,
    wanted: Mapping[str, Entry],
    objects: Collection[str],
    policy: Policy,
    rivals: Mapping[str, tuple[str, ...]],
    rename: str,
) -> None:
    """Raises if nothing of an object would be restored, which no policy allows."""
    for name in objects:
        beginning = f"{name}/"
        own = [key for key in wanted if key.startswith(beginning) and key not in policy.optional]
        if not own or any(key.startswith(beginning) for key in report.restored):
            continue
        if rivals.get(name):
            got = f"several parts that fit: {some(map(repr, rivals[name]))}"
            rename = f"rename={{{rivals[name][0]!r}: {name!r}}} for the first of these"
        else:
            got = f"a checkpoint that has {some(report.unexpected)}" if report.unexpected else None
        error = RestoreError(
            name,
            "none of its arrays are in the checkpoint, so nothing would be restored.",
            got=got,
            expected=some(own),
            fix=rename or f"leave {name} out; or the checkpoint that it was saved to",
        )
        error.report = report
        raise error


def _refuse_by_policy(
    report: RestoreReport, policy: Policy, variables: Mapping[str, Any], names: Mapping[str, str], rename: str
) -> None:
    missing = [name for name in report.missing if not policy.may_be_missing(name, variables.get(name))]
    left_over = [name for name in report.unexpected if not policy.may_be_unexpected(name)]
    unexpected = [_with_reason(name, report, names) for name in report.unexpected]
    if missing:
        fresh = [name for name in missing if Policy("state").may_be_missing(name, variables.get(name))]
        ways = [rename] if rename else []
        if fresh:
            ways.append("missing='state' to start new counters and statistics fresh")
        if len(fresh) < len(missing) and not rename:
            ways.append("missing='init' to keep what the objects have")
        error = RestoreError(
            some(missing),
            "is not in the checkpoint." if len(missing) == 1 else "are not in the checkpoint.",
            got=f"a checkpoint that has also {some(unexpected)}" if unexpected else None,
            fix="; or ".join(ways),
        )
    elif left_over:
        ignore = "unexpected='ignore' to leave it out; hand in all objects that were saved"
        error = RestoreError(
            some(_with_reason(name, report, names) for name in left_over),
            "in the checkpoint, but not in the objects.",
            fix=f"{rename}; or {ignore}" if rename else ignore,
        )
    else:
        return
    error.report = report
    raise error


def _with_reason(name: str, report: RestoreReport, names: Mapping[str, str]) -> str:
    """Returns a name that only the checkpoint has, with the reason."""
    new = names[name]
    if new in report.reset or new in report.kept:
        return f"{name} (persistent=False in the objects)"
    return name if new == name else f"{name} (renamed to {new})"


_SORTS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def converts(saved: Entry, wanted: Entry) -> bool:
    """Returns whether an array may become a `Counter`, judged by shape and dtype."""
    if saved.dtype == "uint32" and saved.shape == wanted.shape:
        return not saved.kind  # the words of a Counter, saved by Orbax alone
    if saved.dtype not in PYTHON and not _is_number(saved.dtype):
        return False
    return saved.shape == wanted.shape[:-1] and saved.dtype not in ("bool", "complex")


def is_same_number(saved: Entry, wanted: Entry) -> bool:
    """Returns whether one is a Python number and the other a scalar array of the same kind.

    `nnx.jit` replaces a number in a Variable by an array, so a trained model differs in this way from a new one.
    """
    if saved.shape or wanted.shape or (saved.dtype in PYTHON) == (wanted.dtype in PYTHON):
        return False
    return any(_is_a(sort, saved) and _is_a(sort, wanted) for sort in _SORTS)


def _is_a(sort: Any, entry: Entry) -> bool:
    return not entry.dtype.startswith(KEY) and bool(jnp.issubdtype(stored_dtype(entry.dtype), sort))


def _is_number(dtype: str) -> bool:
    """Returns whether a dtype is one of real numbers, in which a count may be stored."""
    kind = stored_dtype(dtype)
    is_real = jnp.issubdtype(kind, jnp.number) and not jnp.issubdtype(kind, jnp.complexfloating)
    return bool(is_real) and not dtype.startswith(KEY)
