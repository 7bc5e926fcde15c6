# SPDX-License-Identifier: Apache-2.0
"""Stage 3 of a restore: compares the entries of a checkpoint with those of the objects, and reads no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp

from tallax._errors import RestoreError
from tallax.checkpoints._collect import State
from tallax.checkpoints._manifest import ArrayEntry, Source
from tallax.checkpoints._names import places_of, propose_rename, without_common_end
from tallax.checkpoints._policy import Policy, Rename, renamed, some
from tallax.checkpoints._positions import POSITION
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
        cut = (without_common_end(old, new)[1:] for old, new in self.renamed)
        renamed = tuple(dict.fromkeys(f"{before} -> {after}" for before, after in cut))
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The names in the checkpoint of the arrays to read, by their names in the objects; and the report."""

    sources: dict[str, str]
    report: RestoreReport


def plan_restore(source: Source, target: State, policy: Policy, places: Mapping[str, str] | None = None) -> Plan:
    """Compares the entries of a checkpoint with those of the objects, without reading an array.

    `places` has the name in the objects for each name in the checkpoint, if the caller knows better than `find_places`.

    Raises:
        InvalidTypeError: `rename` returned something other than a name.
        InvalidValueError: `rename` matches nothing, or gives two arrays one name.
        RestoreError: The two differ more than the policy allows.
    """
    wanted = target.entries
    saved = {name: entry for name, entry in source.manifest.entries.items() if entry.persistent}
    if places is None:
        places = find_places(saved, target, policy.rename, is_foreign=source.is_foreign)
    persistent = {name: entry for name, entry in wanted.items() if entry.persistent}
    sources: dict[str, str] = {}
    for old, new in sorted(places.items(), key=lambda place: place[0] == place[1]):  # arrays that were moved go first
        sources.setdefault(new, old)
    common = [name for name in persistent if name in sources]
    faults = {name: _fault(saved[sources[name]], persistent[name]) for name in common}
    report = RestoreReport(
        restored=tuple(name for name in common if faults[name] is None),
        missing=tuple(name for name in persistent if name not in sources),
        unexpected=tuple(old for old, new in places.items() if new not in persistent or sources[new] != old),
        reset=tuple(name for name, entry in wanted.items() if not entry.persistent and entry.resets),
        kept=tuple(name for name, entry in wanted.items() if not entry.persistent and not entry.resets),
        mismatched=tuple(f"{name}: {fault[0]}; expected {fault[1]}" for name, fault in faults.items() if fault),
        renamed=tuple((sources[name], name) for name in common if sources[name] != name),
        step=source.manifest.step,
        extra=source.manifest.extra,
    )
    for name, fault in faults.items():
        if fault:
            raise mismatch(name, sources[name], fault, report)

    def propose() -> str:
        restored = [sources[name] for name in report.restored]
        return propose_rename(report.missing, report.unexpected, restored, may_be, policy.rename)

    def may_be(old: str, new: str) -> bool:
        # The dtype of an array of PyTorch without a place is not known.
        return not saved[old].dtype or _fault(saved[old], persistent[new]) is None

    _require_something(report, policy, target, propose)
    _refuse_by_policy(report, policy, target.variables, places, propose)
    return Plan({name: sources[name] for name in common}, report)


def find_places(names: Collection[str], target: State, rename: Rename, *, is_foreign: bool) -> dict[str, str]:
    """Returns the name in the objects of each array of a checkpoint. Arrays without a place keep their names."""
    places = renamed(names, rename)
    if not is_foreign:
        return places
    wanted = {name: entry.kind == "Param" and entry.persistent for name, entry in target.entries.items()}
    fixed = {new for old, new in places.items() if old != new and new in wanted}
    found = places_of(places.values(), wanted, target.objects, fixed)
    return {old: found[new] for old, new in places.items()}


def restore_error(report: RestoreReport, subject: str, rule: str, **parts: Any) -> RestoreError:
    """Returns the error of a restore, with its report."""
    error = RestoreError(subject, rule, **parts)
    error.report = report
    return error


def mismatch(name: str, source: str, fault: tuple[str, str], report: RestoreReport) -> RestoreError:
    """Returns the error for the first array that does not fit: it has the first form of `fault`, not the second."""
    others = len(report.mismatched) - 1
    return restore_error(
        report,
        name,
        "the shape or dtype differs from the checkpoint, and tallax never casts implicitly."
        + (f" (And {others} more: see the error's report.)" if others > 0 else ""),
        got=f"{fault[0]} in the checkpoint",
        expected=f"{fault[1]}, as in the objects",
        fix="create the model as it was saved; or to ignore it, "
        f"rename={{{source!r}: 'unused'}}, missing=[{name!r}], unexpected=[{source!r}]",
    )


def _fault(saved: ArrayEntry, wanted: ArrayEntry) -> tuple[str, str] | None:
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


def _made(entry: ArrayEntry) -> str:
    return f"{entry} of {entry.owner}({entry.configuration.strip('{}')})" if entry.owner else f"{entry} of no statistic"


def _require_something(report: RestoreReport, policy: Policy, target: State, propose: Callable[[], str]) -> None:
    """Raises `RestoreError` if nothing of an object would be restored, which no policy allows."""
    persistent = [name for name, entry in target.entries.items() if entry.persistent and name not in policy.optional]
    for name in target.objects:
        own = [key for key in persistent if key.startswith(f"{name}/")]
        if own and not any(key.startswith(f"{name}/") for key in report.restored):
            raise restore_error(
                report,
                name,
                "none of its arrays are in the checkpoint, so nothing would be restored.",
                got=f"a checkpoint that has {some(report.unexpected)}" if report.unexpected else None,
                expected=some(own),
                fix=propose() or f"leave {name} out; or the checkpoint that it was saved to",
            )


def _refuse_by_policy(
    report: RestoreReport,
    policy: Policy,
    variables: Mapping[str, Any],
    places: Mapping[str, str],
    propose: Callable[[], str],
) -> None:
    """Raises `RestoreError` if the policy does not allow all names that only one side has."""
    missing = [name for name in report.missing if not policy.may_be_missing(name, variables.get(name))]
    left_over = [name for name in report.unexpected if not policy.may_be_unexpected(name)]
    unexpected = [_with_reason(name, report, places) for name in report.unexpected]
    if not missing and not left_over:
        return
    proposed = propose()
    if missing:
        fresh = [name for name in missing if Policy("state").may_be_missing(name, variables.get(name))]
        ways = [proposed] if proposed else []
        if fresh:
            ways.append("missing='state' to start new counters and statistics fresh")
        if len(fresh) < len(missing) and not proposed:
            ways.append("missing='init' to keep what the objects have")
        raise restore_error(
            report,
            some(missing),
            "is not in the checkpoint." if len(missing) == 1 else "are not in the checkpoint.",
            got=f"a checkpoint that has also {some(unexpected)}" if unexpected else None,
            fix="; or ".join(ways),
        )
    ignore = "unexpected='ignore' to leave it out; hand in all objects that were saved"
    raise restore_error(
        report,
        some(_with_reason(name, report, places) for name in left_over),
        "in the checkpoint, but not in the objects.",
        fix=f"{proposed}; or {ignore}" if proposed else ignore,
    )


def _with_reason(name: str, report: RestoreReport, places: Mapping[str, str]) -> str:
    """Returns a name that only the checkpoint has, with the reason."""
    new = places[name]
    if new in report.reset or new in report.kept:
        return f"{name} (persistent=False in the objects)"
    return name if new == name else f"{name} (renamed to {new})"


_SORTS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def converts(saved: ArrayEntry, wanted: ArrayEntry) -> bool:
    """Returns whether an array may become a `Counter`, judged by shape and dtype."""
    if saved.dtype == "uint32" and saved.shape == wanted.shape:
        return not saved.kind  # the words of a Counter, saved by Orbax alone
    return saved.shape == wanted.shape[:-1] and _sort_of(saved) in (jnp.integer, jnp.floating)


def is_same_number(saved: ArrayEntry, wanted: ArrayEntry) -> bool:
    """Returns whether one is a Python number and the other a scalar array of the same kind.

    `nnx.jit` replaces a number in a Variable by an array, so a trained model differs in this way from a new one.
    """
    if saved.shape or wanted.shape or (saved.dtype in PYTHON) == (wanted.dtype in PYTHON):
        return False
    return _sort_of(saved) is not None and _sort_of(saved) == _sort_of(wanted)


def _sort_of(entry: ArrayEntry) -> Any:
    """Returns the sort of an entry's numbers; None for random keys, and for arrays without numbers."""
    is_key = entry.dtype.startswith(KEY)
    return None if is_key else next((s for s in _SORTS if jnp.issubdtype(stored_dtype(entry.dtype), s)), None)
