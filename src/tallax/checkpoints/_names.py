# SPDX-License-Identifier: Apache-2.0
"""Finds the place in the objects for each array of a checkpoint that tallax did not write, or proposes a `rename=`.

tallax writes `model/layer/kernel`. Other programs save a state below the same name, bare (`layer/kernel`), or below one
name of their own (`net/layer/kernel`). Orbax adds a level `value` for each Variable.

A wrong place would restore the wrong arrays silently: Adam's `mu` has the names and shapes of the parameters. So an
object is found only below its own name, or if exactly one other part of the checkpoint has all its parameters. All
other arrays keep their names, and the error of the plan proposes a `rename=`, which the user may check.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from tallax.checkpoints._policy import Rename, some

# optax stores arrays that look like the parameters under these names.
_LOOKALIKES = {"mu", "nu", "trace", "acc_grads"}
_MOST = 200  # the most names that a proposal considers, so that an error is not delayed


def places_of(
    names: Collection[str], wanted: Mapping[str, bool], objects: Collection[str], fixed: Collection[str] = ()
) -> dict[str, str]:
    """Returns the name in the objects of each array of a checkpoint. Arrays without a place keep their names.

    Args:
        names: The names in the checkpoint.
        wanted: The names of all arrays of the objects, and whether each is a parameter.
        objects: The names of the objects.
        fixed: Names in the checkpoint that are names in the objects, because `rename=` returned them.
    """
    places = {name: name for name in names}
    free = [name for name in names if name not in fixed]
    tops = {name.partition("/")[0] for name in free if "/" in name}
    # An object that is found by its own name goes first, so that no other object gets its arrays.
    for thing in sorted(objects, key=lambda thing: thing not in tops):
        own = {name for name in wanted if name.startswith(f"{thing}/") and name not in fixed}
        needed = {name for name in own if wanted[name]} or own
        found = _found_below_each_prefix(free, {name.removeprefix(f"{thing}/"): name for name in own})
        if found[thing]:
            # An object may have an attribute of its own name, so a bare state that has more of it comes first.
            chosen = ["" if len(found[""]) > len(found[thing]) else thing]
        else:
            chosen = [prefix for prefix, part in found.items() if needed and needed <= part.keys()]
            chosen = [prefix for prefix in chosen if prefix not in _LOOKALIKES | {*objects, "value"}]
            if thing in tops or (not any(wanted[name] for name in needed) and len(needed) == 1):
                # Its own part has nothing of it; or it is a lone counter, and `step` is found below many names.
                chosen = [prefix for prefix in chosen if not prefix]
        if len(chosen) == 1:
            places |= {old: new for new, old in found[chosen[0]].items()}
            free = [name for name in free if name not in found[chosen[0]].values()]
    return places


def _found_below_each_prefix(names: Collection[str], wanted: Mapping[str, str]) -> Mapping[str, dict[str, str]]:
    """Returns for the top ("") and for each name on it the arrays below: the name in the checkpoint for each place."""
    below: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        top, _, rest = name.partition("/")
        below[""][name] = name
        below[top][rest] = name
    places = {key: wanted[local] for local, key in _without_values(wanted).items()}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for prefix, part in below.items():
        found[prefix] = {places[key]: part[local] for local, key in _without_values(part).items() if key in places}
    return found


def _without_values(names: Collection[str]) -> dict[str, str]:
    """Returns each name without levels called `value`, or the name itself if several names would become the same."""
    short = {name: "/".join(part for part in name.split("/") if part != "value") for name in names}
    number = Counter(short.values())
    return {name: key if number[key] == 1 else name for name, key in short.items()}


def without_value_levels(names: Collection[str]) -> dict[str, str]:
    """Returns the names of arrays without a last level `value`, which Flax's Variables add in Orbax.

    A name does not change if another array would have the new name, or would be below it.
    """
    inner = {"/".join(parts[:k]) for parts in (name.split("/") for name in names) for k in range(1, len(parts) - 1)}
    inner |= {name.rpartition("/")[0] for name in names if not name.endswith("/value")} | set(names)
    short = {name: name.removesuffix("/value") for name in names}
    return {name: name if new in inner else new for name, new in short.items()}


# --- what an error proposes -------------------------------------------------------------------------------------------


def propose_rename(
    missing: Sequence[str],
    unexpected: Sequence[str],
    restored: Sequence[str],
    may_be: Callable[[str, str], bool],
    rename: Rename,
) -> str:
    """Returns a `rename=` for arrays without a place, added to that of the user, or an empty string.

    A missing array corresponds to the unexpected arrays that it may be and that have the longest common end of names.
    The beginnings of names on which most arrays agree come first. A beginning of `restored` arrays, which have a place,
    is not renamed.
    """
    if callable(rename):
        return ""
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for new in missing[:_MOST]:
        ends = {old: without_common_end(old, new) for old in unexpected[:_MOST] if may_be(old, new)}
        most = max((number for number, _, _ in ends.values()), default=0)
        for old, (number, before, after) in ends.items():
            if number == most > 0:
                is_used = any(name.startswith((f"{before}/", f"{before}.")) for name in restored)
                members[(old, new) if is_used else (before, after)].add(new)
    proposed: dict[str, str] = {}
    placed: set[str] = set()
    rivals: list[str] = []
    for (before, after), names in sorted(members.items(), key=lambda pair: -len(pair[1])):
        if before not in proposed and not placed & names:
            proposed[before] = after
            placed |= names
        elif before not in proposed:
            rivals.append(before)
    rivals = [repr(before) for before in rivals if before not in proposed]
    choice = f" (or with {some(rivals)} in its place)" if rivals else ""
    return f"rename={ {**(rename or {}), **proposed} }{choice}" if proposed else ""


def without_common_end(old: str, new: str) -> tuple[int, str, str]:
    """Returns the number of last levels that two names share, and the names without these, but with one level left."""
    one, other = (re.split("[./]", name) for name in (old, new))  # the levels of PyTorch's names are separated by dots
    pairs = zip(reversed(one), reversed(other), strict=False)
    number = next((k for k, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
    cut = min(number, len(one) - 1, len(other) - 1)
    size = sum(len(level) + 1 for level in other[len(other) - cut :])
    return number, old[: len(old) - size], new[: len(new) - size]
