# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of a restore: the manifest of a checkpoint, and the entries of a tree that has none.

The manifest is JSON, kept as one more array beside the others. It names everything that was saved, with kind, dtype,
shape and checksum, and stores the values of small tallax variables inline: a thousand counters are a thousand entries
of it, and each would be an array of its own to Orbax. It is validated before it is used, and no name in it becomes a
path.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tallax._errors import CheckpointError, InvalidValueError, compose, describe
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._prefixes import without_value_levels
from tallax.checkpoints._serialize import RESERVED, is_key, joined, key_of, size_of, stored, stored_dtype

FORMAT = 1
MOST = 2**28  # bytes of a manifest, items included
_MANY = 2**23  # values in it: Python takes some sixty bytes for the three of `[],`
_NAME = re.compile(r"[\w%~ -]+(/[\w%~ -]+)*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a checkpoint.

    Attributes:
        kind: of the Variable that held it, such as `Param` or `Counter`; empty where that is not known.
        dtype: as `_leaves.dtype_of` says; for a `Counter` that of its words.
        shape: of the array; for a `Counter` of its words.
        owner: the kind of the statistic or `Scheduled` whose state it is; empty for others.
        configuration: what that statistic was made with.
        reduce: how copies of an item combine; empty for others.
        persistent: False for what is named, but not kept.
        at: where its bytes lie among those of the items; None for an array of its own.
        sum: of its words; None where it is not known.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    owner: str = ""
    configuration: str = ""
    reduce: str = ""
    persistent: bool = True
    at: int | None = None
    sum: int | None = None

    @property
    def resets(self) -> bool:
        """Whether it has a value to be reset to: a count does, and what a statistic keeps."""
        return self.kind == "Counter" or self.owner not in ("", "Scheduled")

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return size_of(self.shape, self.dtype)

    def __str__(self) -> str:
        if self.kind == POSITION:
            return "a position in the data"
        if self.kind == "Counter":
            return f"counts[{','.join(map(str, self.shape[:-1]))}]"
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint.

    Attributes:
        entries: by name.
        items: the bytes of all items, one behind the other.
        extra: what the user put in, JSON.
        step: the number under which `Checkpoints` saved it.
    """

    entries: Mapping[str, Entry]
    items: bytes = b""
    extra: Any = None
    step: int | None = None

    def array(self, name: str) -> np.ndarray:
        """Returns the array of an item, by its name."""
        entry = self.entries[name]
        assert entry.at is not None
        part = self.items[entry.at : entry.at + entry.nbytes]
        return np.frombuffer(part, stored_dtype(entry.dtype)).reshape(entry.shape)

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        defaults = {field.name: field.default for field in dataclasses.fields(Entry)}
        entries = {
            name: {key: value for key, value in vars(entry).items() if value != defaults[key]}
            for name, entry in self.entries.items()
        }
        body = {"entries": entries, "items": base64.b64encode(self.items).decode()}
        body |= {"extra": self.extra, "step": self.step}
        return {"format": FORMAT, **body, "crc32": _crc_of(body)}

    def encoded(self) -> np.ndarray:
        """Returns it as an array of bytes.

        Raises:
            InvalidValueError: it would be more than is ever read again.
        """
        text = json.dumps(self.as_json(), separators=(",", ":")).encode()
        if is_too_much(text):
            raise InvalidValueError(
                compose(
                    "the checkpoint",
                    "what it tells of itself, extra= and small items included, is kept within bounds.",
                    got=f"{len(text)} bytes of JSON",
                    expected=f"{MOST} bytes at most, and {_MANY} values",
                    fix="a file of its own for what is large in extra=; tallax.Counter(shape=...) for many counts",
                )
            )
        return np.frombuffer(text, np.uint8)

    @classmethod
    def decoded(cls, array: Any) -> Manifest:
        """Returns what an array of bytes says.

        Raises:
            CheckpointError: it says nothing, or what no version of tallax wrote, or what a later one wrote.
        """
        if getattr(array, "ndim", None) != 1 or array.dtype != np.uint8 or array.size > MOST:
            raise damaged("its manifest is not text")
        text = np.asarray(array).tobytes()
        if is_too_much(text):
            raise damaged("its manifest has more values than any that tallax writes")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise damaged("its manifest is not JSON") from None
        return cls.from_json(found)

    @classmethod
    def from_json(cls, found: Any) -> Manifest:
        """Returns what JSON says; raises as `decoded` does."""
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise CheckpointError(
                compose(
                    "the checkpoint",
                    "was written by a newer tallax than this one.",
                    got=f"format {version}",
                    expected=f"format {FORMAT}",
                    fix="pip install --upgrade tallax",
                )
            )
        if version != FORMAT:
            raise damaged("its manifest has no format")
        body: dict[str, Any] = {key: found.get(key) for key in ("entries", "items", "extra", "step")}
        if found.get("crc32") != _crc_of(body):
            raise damaged("its manifest is not what was written")
        try:
            items = base64.b64decode(body["items"], validate=True)
            entries = {_checked_name(name): _entry(entry, len(items)) for name, entry in body["entries"].items()}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise damaged(f"its manifest cannot be parsed ({error})") from None
        step = body["step"]
        return cls(entries, items, body["extra"], step if isinstance(step, int) else None)


def is_too_much(text: bytes, *, times: int = 1) -> bool:
    """Returns whether JSON is too large to be read, or would be once it is Python's objects."""
    return len(text) > times * MOST or sum(map(text.count, (b",", b"[", b"{"))) > times * _MANY


def damaged(what: str) -> CheckpointError:
    """Returns the error of a checkpoint of which something is wrong."""
    return CheckpointError(
        compose(
            "the checkpoint",
            "is damaged or was tampered with.",
            got=what,
            fix="restore an earlier one: tallax.Checkpoints(folder).restore(model, step=...)",
        )
    )


def _crc_of(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("a name that no object has")
    return name


def _entry(found: dict[str, Any], size: int) -> Entry:
    types = {field.name: field.type for field in dataclasses.fields(Entry)}
    for key, value in found.items():
        expected = {"str": str, "bool": bool, "tuple[int, ...]": list}.get(str(types[key]), int)
        if type(value) is not expected:
            raise ValueError(f"{key} of an entry is a {type(value).__name__}")
    shape = tuple(found["shape"])
    if not all(type(axis) is int and axis >= 0 for axis in shape) or len(shape) > 32:
        raise ValueError("an entry has no shape")
    entry = Entry(**{**found, "shape": shape})
    if entry.at is not None and not 0 <= entry.at <= entry.at + entry.nbytes <= size:
        raise ValueError("an item lies outside of the items")
    if entry.kind == "Counter" and (entry.dtype != "uint32" or entry.shape[-1:] != (2,)):
        raise ValueError("a count is not made of words")
    return entry


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: what it says that it has, and its arrays, or what stands for them.

    Attributes:
        manifest: what it tells of itself; made up from the arrays where tallax did not write it.
        arrays: by name.
    """

    manifest: Manifest
    arrays: dict[str, Any]

    @classmethod
    def of(cls, tree: Any, manifest: Manifest | None = None) -> Source:
        """Returns the source for a tree.

        Args:
            tree: nested dicts of arrays, or of anything with a shape and a dtype.
            manifest: what it tells of itself, where that is known already.

        Raises:
            CheckpointError: the manifest and the arrays do not agree.
        """
        leaves = arrays_in(tree, quoted=isinstance(tree, Mapping) and RESERVED in tree)
        found = leaves.pop(RESERVED, None)
        read_by_others = manifest is None
        if manifest is None and found is not None:
            manifest = Manifest.decoded(found)
        if manifest is None:
            return cls._foreign(leaves)
        entries = {name: entry for name, entry in manifest.entries.items() if entry.persistent and entry.at is None}
        for name in {**entries, **leaves}:
            if name not in leaves or name not in entries:
                raise damaged(f"{name} is in the manifest, or among the arrays, but not in both")
            shape, dtype = tuple(leaves[name].shape), str(np.dtype(leaves[name].dtype))
            entry = entries[name]
            if (shape, dtype) != (entry.shape, str(stored_dtype(entry.dtype))):
                if read_by_others and shape == entry.shape:
                    raise _cast(name, f"{dtype}{list(shape)}", entry)
                raise damaged(f"{name} is {dtype}{list(shape)}, and {entry} in the manifest")
        return cls(manifest, leaves)

    @classmethod
    def _foreign(cls, leaves: dict[str, Any]) -> Source:
        """Returns the source for a tree that tallax did not write, such as an `nnx.State`."""
        names = without_value_levels(leaves)
        arrays = {names[name]: stored(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items()}
        entries = {name: Entry("", str(np.dtype(leaf.dtype)), tuple(leaf.shape)) for name, leaf in arrays.items()}
        return cls(Manifest(entries), arrays)


def _cast(name: str, got: str, entry: Entry) -> CheckpointError:
    """Returns the error of an array that came in another dtype than it was written in."""
    return CheckpointError(
        compose(
            name,
            "is not as it was written; Orbax casts to the dtypes of what it is asked for, and JAX what has 64 bits.",
            got=got,
            expected=f"{entry}, as the manifest says",
            fix="ask Orbax for tallax.checkpoint_target(metadata, model); or an earlier checkpoint, if this is damaged",
        )
    )


def arrays_in(tree: Any, *, quoted: bool) -> dict[str, Any]:
    """Returns the arrays of a tree, or what stands for them, by name.

    Args:
        tree: nested dicts.
        quoted: whether its keys are parts of names already.
    """
    try:
        flat = [([*map(key_of, path)], leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        leaves = {joined(keys, quoted=len(keys) if quoted else 0): leaf for keys, leaf in flat}
    except (TypeError, ValueError, RecursionError):
        leaves = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, bool | int | float | complex):
            leaves[name] = np.asarray(leaf)
    arrays = (hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves.values())
    if not leaves or "" in leaves or not all(arrays):
        raise CheckpointError(
            compose(
                "the checkpoint",
                "is not a tree of arrays.",
                got=describe(tree),
                fix="what Orbax restores of tallax.to_checkpoint(...), or of nnx.state(model)",
            )
        )
    return leaves
