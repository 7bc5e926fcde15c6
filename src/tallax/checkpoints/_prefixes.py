# SPDX-License-Identifier: Apache-2.0
"""The places in the objects for arrays of a checkpoint that tallax did not write.

tallax writes `model/layer/kernel`. Other programs save a state below the same name, bare (`layer/kernel`), or below one
name of their own (`net/layer/kernel`). Orbax adds a level `value` for each Variable.

A wrong place would restore the wrong arrays silently: Adam's `mu` has the names and shapes of the parameters. So an
object is found only below its own name, or if exactly one other part of the checkpoint has all its parameters. All
other arrays keep their names, and the error of the plan proposes a `rename=`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

# optax stores arrays that look like the parameters under these names.
_LOOKALIKES = {"mu", "nu", "trace", "acc_grads"}


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
        parameters = {name for name in own if wanted[name]}
        found = _found_below_each_prefix(free, {name.removeprefix(f"{thing}/"): name for name in own})
        if found[thing]:
            # An object may have an attribute of its own name, so a bare state that has more of it comes first.
            chosen = ["" if len(found[""]) > len(found[thing]) else thing]
        elif thing in tops or (len(own) == 1 and not parameters):  # a lone counter `step` is found below many names
            chosen = [""] if own <= found[""].keys() else []
        else:
            chosen = [prefix for prefix, part in found.items() if (parameters or own) <= part.keys()]
            chosen = [prefix for prefix in chosen if prefix not in _LOOKALIKES | {*objects, "value"}]
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
