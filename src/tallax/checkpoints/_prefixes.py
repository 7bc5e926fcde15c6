# SPDX-License-Identifier: Apache-2.0
"""The names of an object's arrays in a checkpoint whose tree has a level more or less than tallax writes.

tallax writes `model/layer/kernel`. Other programs save a state bare (`layer/kernel`), under a name of their own
(`net/layer/kernel`), inside a wrapper (`state/model/layer/kernel`), or by collection (`params/layer/kernel` and
`batch_stats/norm/mean`). Each of these puts a prefix in front of the names that an object has for its arrays, so a
layout is one prefix for each object, or several for collections.

A wrong prefix would restore the wrong arrays silently: Adam's `mu` has the names and shapes of the parameters. So a
prefix is inferred only if it is short, is not known to belong to another object, and covers most of the object or of
its own part of the checkpoint. If two such prefixes compete, neither is used, and the error prints the `rename=`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

Prefix: TypeAlias = tuple[str, ...]

_WORDS = {
    "model": {"model", "params", "state", "module", "net", "network", "weights", "model_state", "_orig_mod"},
    "optimizer": {"optimizer", "opt", "optim", "opt_state", "optimizer_state"},
}
_COLLECTIONS = {"batch_stats", "batch_stat", "buffers", "cache", "counters", "others", "other", "rest", "rngs", "state"}
# optax stores arrays that look like the parameters under these names.
_LOOKALIKES = {"mu", "nu", "trace", "opt_state", "inner_opt_state", "acc_grads"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The names of an object's arrays below the object's own name.

    Attributes:
        names: All names.
        core: The names that are needed to recognise the object: the parameters, or all names if it has no parameters.
    """

    names: frozenset[str]
    core: frozenset[str]

    @property
    def kind(self) -> str:
        """The kind of object: an optimizer has a state named after its class, everything else is a model."""
        return "optimizer" if any(name.startswith("opt_state/") for name in self.names) else "model"

    @classmethod
    def of(cls, names: Collection[str], parameters: Collection[str]) -> Wanted:
        """Returns the names of an object, some of which are parameters."""
        return cls(frozenset(names), frozenset(parameters) or frozenset(names))


def layout_of(
    names: Collection[str], objects: Mapping[str, Wanted], *, pinned: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Returns the place of each array of a checkpoint, and the prefixes that compete for an object.

    Arrays without a place keep their name. `pinned` names, which `rename` returned, are always names in the objects.
    """
    found = {name: name for name in names}
    full = {f"{name}/{local}" for name, wanted in objects.items() for local in wanted.names}
    taken = {name for name in pinned if name in full}
    free = [name for name in names if name not in taken]
    rivals = {}
    tops = {name.split("/")[0] for name in free if "/" in name}
    # An object that is found by its own name goes first, so that no other object gets its arrays.
    for name in sorted(objects, key=lambda name: name not in tops):
        wanted = objects[name]
        left = {local for local in wanted.names if f"{name}/{local}" not in taken}
        covers = _covers(free, left)
        chosen, competing = _chosen(name, wanted, covers, free, tops, objects)
        if competing:
            rivals[name] = ["/".join(prefix) for prefix in competing]
        for prefix in chosen:
            for local, old in covers[prefix].items():
                if f"{name}/{local}" not in taken:
                    found[old] = f"{name}/{local}"
                    taken.add(f"{name}/{local}")
        claimed = {old for prefix in chosen for old in covers[prefix].values()}
        free = [old for old in free if old not in claimed]
    return found, rivals


def without_value_levels(names: Collection[str]) -> dict[str, str]:
    """Returns the names of arrays without a last level `value`, which Flax's Variables add in Orbax.

    A name does not change if another array would have the new name, or would be below it.
    """
    inner = {"/".join(parts[:k]) for parts in (name.split("/") for name in names) for k in range(1, len(parts) - 1)}
    inner |= {name.rpartition("/")[0] for name in names if not name.endswith("/value")} | set(names)
    short = {name: name.removesuffix("/value") for name in names}
    return {name: name if new in inner else new for name, new in short.items()}


def spellings(name: str) -> Iterator[str]:
    """Yields the names that an array may have in the objects: its own, then with and without a level called `value`."""
    yield name
    yield f"{name}/value"
    parts = name.split("/")
    for k in range(len(parts) - 1, 0, -1):
        if parts[k] == "value":
            yield "/".join(parts[:k] + parts[k + 1 :])
    if "%2" in name:  # a flat dict, whose keys are whole paths
        yield name.replace("%2F", "/").replace("%2E", "/")


def _covers(names: Collection[str], wanted: Collection[str]) -> dict[Prefix, dict[str, str]]:
    """Returns for each prefix the arrays of an object that are below it, with their names in the checkpoint."""
    covers: dict[Prefix, dict[str, str]] = defaultdict(dict)
    for name in names:
        done = set()
        for spelling in spellings(name):
            parts = spelling.split("/")
            for k in range(min(len(parts), 3)):
                local, prefix = "/".join(parts[k:]), tuple(parts[:k])
                if local in wanted and prefix not in done:
                    covers[prefix].setdefault(local, name)
                    done.add(prefix)
    return covers


def _chosen(
    name: str,
    wanted: Wanted,
    covers: Mapping[Prefix, Mapping[str, str]],
    free: Collection[str],
    tops: Collection[str],
    objects: Mapping[str, Wanted],
) -> tuple[list[Prefix], list[Prefix]]:
    """Returns the prefixes of an object, or the competing prefixes if none is clear."""
    own: Prefix = (name,)
    bare: Prefix = ()
    if covers.get(own):
        # An object may have an attribute of its own name, so a bare state that covers more of it comes first.
        is_bare = len(covers.get(bare, ())) > len(covers[own])
        return [bare if is_bare else own], []
    words, others = _words_of(name, objects)
    fitting = []
    for prefix, cover in covers.items():
        is_allowed = _is_allowed(prefix, name, words, others, tops)
        if is_allowed and _is_convincing(prefix, cover, wanted, len(_below(free, prefix))):
            fitting.append(prefix)
    preferred = [prefix for prefix in fitting if prefix and prefix[-1] in words]
    candidates = preferred or fitting
    if not candidates:
        return [], []
    if len(candidates) > 1:
        return [], sorted(candidates)
    (prefix,) = candidates
    collections = []
    if prefix and prefix[-1] == "params":
        for other, cover in covers.items():
            is_beside = len(other) == len(prefix) and other[:-1] == prefix[:-1] and other[-1] in _COLLECTIONS
            if is_beside and not cover.keys() & covers[prefix].keys() and len(cover) == len(_below(free, other)):
                collections.append(other)
    return [prefix, *collections], []


def _words_of(name: str, objects: Mapping[str, Wanted]) -> tuple[set[str], set[str]]:
    """Returns other names of an object, and names that belong to other objects."""
    kinds = {other: wanted.kind for other, wanted in objects.items()}
    is_only_one = list(kinds.values()).count(kinds[name]) == 1
    words = {name} | (_WORDS[kinds[name]] if is_only_one or name == kinds[name] else set())
    return words, (set().union(*_WORDS.values()) | set(objects)) - words


def _is_allowed(
    prefix: Prefix, name: str, words: Collection[str], others: Collection[str], tops: Collection[str]
) -> bool:
    if not prefix:
        return True
    if name in tops and prefix[0] != name:
        return False  # the checkpoint has a part with this name, so arrays elsewhere belong to other objects
    if len(prefix) == 1:
        return prefix[0] not in others and (prefix[0] in words or prefix[0] not in _LOOKALIKES)
    # In older versions of Flax an optimizer contained the model, so any prefix may come before its own name.
    return prefix[-1] == name or (prefix[-1] in words and prefix[0] not in others and prefix[0] not in _LOOKALIKES)


def _is_convincing(prefix: Prefix, cover: Mapping[str, str], wanted: Wanted, under: int) -> bool:
    """Returns whether a part of a checkpoint, of `under` arrays, is certainly an object: one has most of the other."""
    if not cover.keys() & wanted.core:
        return False
    if not prefix and wanted.core != wanted.names:
        return True  # a parameter with its whole path is enough
    if len(wanted.names) == 1:  # a counter named `step` is found below many prefixes
        return not prefix or under == 1
    return 2 * len(cover) > min(len(wanted.names), under)


def _below(names: Collection[str], prefix: Prefix) -> list[str]:
    beginning = "".join(f"{part}/" for part in prefix)
    return [name for name in names if name.startswith(beginning)]
