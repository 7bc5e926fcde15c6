# SPDX-License-Identifier: Apache-2.0
"""Stage 3 of a restore: compares the entries of a checkpoint with those of the objects, and reads no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from tallax._errors import RestoreError
from tallax.checkpoints._collect import State
from tallax.checkpoints._manifest import Entry, Manifest
from tallax.checkpoints._policy import Names, Policy, Rename, proposal, renamed, some
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._prefixes import Wanted, layout_of
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
    """The arrays to read by their names in the objects, all names, and the report of the restore."""

    sources: dict[str, str]
    names: Names
    report: RestoreReport


def plan_restore(manifest: Manifest, target: State, policy: Policy, names: Names | None = None) -> Plan:
    """Compares the entries of a checkpoint with those of the objects, without reading an array.

    Raises:
        InvalidTypeError: `rename` returned something other than a name.
        InvalidValueError: `rename` matches nothing, or gives two arrays one name.
        RestoreError: The two differ more than the policy allows.
    """
    wanted = target.entries
    saved = {name: entry for name, entry in manifest.entries.items() if entry.persistent}
    names = names or infer_names(saved, target, policy.rename)
    sources = {new: old for old, new in names.places.items()}
    persistent = {name: entry for name, entry in wanted.items() if entry.persistent}
    common = [name for name in persistent if name in sources]
    faults = {name: _fault(saved[sources[name]], persistent[name]) for name in common}
    report = RestoreReport(
        restored=tuple(name for name in common if faults[name] is None),
        missing=tuple(name for name in persistent if name not in sources),
        unexpected=tuple(old for old, new in names.places.items() if new not in persistent),
        reset=tuple(name for name, entry in wanted.items() if not entry.persistent and entry.resets),
        kept=tuple(name for name, entry in wanted.items() if not entry.persistent and not entry.resets),
        mismatched=tuple(f"{name}: {fault[0]}; expected {fault[1]}" for name, fault in faults.items() if fault),
        renamed=tuple((sources[name], name) for name in common if sources[name] != name),
        step=manifest.step,
        extra=manifest.extra,
    )
    for name, fault in faults.items():
        if fault:
            raise mismatch(name, sources[name], fault, report, names)
    fix = _proposed(report, saved, persistent, sources, names)
    for name in target.objects:
        own = [key for key in persistent if key.startswith(f"{name}/") and key not in policy.optional]
        if own and not any(key.startswith(f"{name}/") for key in report.restored):
            raise _nothing_restored(name, own, report, names.rivals.get(name, ()), fix)
    _refuse_by_policy(report, policy, target.variables, names.places, fix)
    return Plan({name: sources[name] for name in common}, names, report)


def infer_names(saved: Collection[str], target: State, rename: Rename) -> Names:
    """Returns the place of each array of a checkpoint, below the name of its object or another prefix."""
    first = renamed(saved, rename)
    parts = {}
    for name in target.objects:
        own = [key.removeprefix(f"{name}/") for key in target.entries if key.startswith(f"{name}/")]
        parts[name] = Wanted.of(own, [key for key in own if target.entries[f"{name}/{key}"].kind == "Param"])
    found, rivals = layout_of(first.values(), parts, pinned=[new for old, new in first.items() if old != new])
    return Names({old: found[new] for old, new in first.items()}, rivals, rename)


def restore_error(report: RestoreReport, subject: str, rule: str, **parts: Any) -> RestoreError:
    """Returns the error of a restore, with its report."""
    error = RestoreError(subject, rule, **parts)
    error.report = report
    return error


def mismatch(name: str, source: str, fault: tuple[str, str], report: RestoreReport, names: Names) -> RestoreError:
    """Returns the error for the first array that does not fit: it has the first form of `fault`, not the second."""
    others = len(report.mismatched) - 1
    spelled = names.saved.get(source, source)
    return restore_error(
        report,
        name,
        "the shape or dtype differs from the checkpoint, and tallax never casts implicitly."
        + (f" (And {others} more: see the error's report.)" if others > 0 else ""),
        got=f"{fault[0]} in the checkpoint",
        expected=f"{fault[1]}, as in the objects",
        fix="create the model as it was saved; or to ignore it, "
        f"rename={{{spelled!r}: 'unused'}}, missing=[{name!r}], unexpected=[{source!r}]",
    )


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
    names: Names,
) -> str:
    """Returns a `rename=` for arrays without a place, as users would write it, or an empty string."""
    if not (report.missing and report.unexpected):
        return ""
    fits = names.fits or (lambda old, new: _fault(saved[old], wanted[new]) is None)
    restored = [sources[name] for name in report.restored]
    mapping = proposal(report.missing, report.unexpected, restored, fits, names)
    if not mapping or (callable(names.rename) and names.fits is None):
        return ""
    return f"rename={ {**(names.rename if isinstance(names.rename, Mapping) else {}), **mapping} }"


def _nothing_restored(
    name: str, own: Sequence[str], report: RestoreReport, rivals: Sequence[str], rename: str
) -> RestoreError:
    """Returns the error if nothing of an object would be restored, which no policy allows."""
    got = f"a checkpoint that has {some(report.unexpected)}" if report.unexpected else None
    if rivals:
        got = f"several parts that fit: {some(map(repr, rivals))}"
        rename = f"rename={{{rivals[0]!r}: {name!r}}} for the first of these"
    return restore_error(
        report,
        name,
        "none of its arrays are in the checkpoint, so nothing would be restored.",
        got=got,
        expected=some(own),
        fix=rename or f"leave {name} out; or the checkpoint that it was saved to",
    )


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
        raise restore_error(
            report,
            some(missing),
            "is not in the checkpoint." if len(missing) == 1 else "are not in the checkpoint.",
            got=f"a checkpoint that has also {some(unexpected)}" if unexpected else None,
            fix="; or ".join(ways),
        )
    if left_over:
        ignore = "unexpected='ignore' to leave it out; hand in all objects that were saved"
        raise restore_error(
            report,
            some(_with_reason(name, report, names) for name in left_over),
            "in the checkpoint, but not in the objects.",
            fix=f"{rename}; or {ignore}" if rename else ignore,
        )


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
    return saved.shape == wanted.shape[:-1] and _sort_of(saved) in (jnp.integer, jnp.floating)


def is_same_number(saved: Entry, wanted: Entry) -> bool:
    """Returns whether one is a Python number and the other a scalar array of the same kind.

    `nnx.jit` replaces a number in a Variable by an array, so a trained model differs in this way from a new one.
    """
    if saved.shape or wanted.shape or (saved.dtype in PYTHON) == (wanted.dtype in PYTHON):
        return False
    return _sort_of(saved) is not None and _sort_of(saved) == _sort_of(wanted)


def _sort_of(entry: Entry) -> Any:
    """Returns the sort of an entry's numbers; None for random keys, and for arrays without numbers."""
    is_key = entry.dtype.startswith(KEY)
    return None if is_key else next((s for s in _SORTS if jnp.issubdtype(stored_dtype(entry.dtype), s)), None)
