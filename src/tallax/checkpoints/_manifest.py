# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of a restore: the manifest of a checkpoint, and the entries of a tree without a manifest.

The manifest is JSON, stored as one more array. It lists all saved arrays with kind, dtype, shape and checksum, and
stores the values of small tallax variables inline: a thousand counters are a thousand entries, instead of a thousand
arrays of Orbax. It is validated before it is used, and no name in it becomes a path.
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

from tallax._errors import CheckpointError, InvalidValueError, describe
from tallax.checkpoints._names import without_value_levels
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._serialize import RESERVED, is_key, joined, size_of, stored, stored_dtype

FORMAT = 1
MOST = 2**28  # the most bytes of a manifest, including inline values
_MANY = 2**23  # the most JSON values in it, because Python needs some sixty bytes for the three of `[],`
_NAME = re.compile(r"[\w%~ -]+(/[\w%~ -]+)*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ArrayEntry:
    """One array of a checkpoint.

    Attributes:
        kind: The kind of its Variable, such as `Param` or `Counter`; empty if it is unknown.
        dtype: The result of `dtype_of`; for a `Counter`, the dtype of its words.
        shape: The shape of the array; for a `Counter`, the shape of its words.
        owner: The kind of the statistic or `ScheduledValue` that owns it; empty for others.
        configuration: The configuration of that statistic.
        reduce: The reduction of a tallax variable; empty for others.
        persistent: False for a variable that is listed, but not saved.
        at: The offset of its bytes among the inline values; None for a separate array.
        sum: The sum of its words, or None if it is unknown.
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
        """True if it has a reset value: a count, or the state of a statistic."""
        return self.kind == "Counter" or self.owner not in ("", "ScheduledValue")

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
        entries: The entries by name.
        items: The bytes of all inline values, concatenated.
        extra: The user's JSON.
        step: The number under which `Checkpoints` saved it.
    """

    entries: Mapping[str, ArrayEntry]
    items: bytes = b""
    extra: Any = None
    step: int | None = None

    def array(self, name: str) -> np.ndarray:
        """Returns the array of an inline value by its name."""
        entry = self.entries[name]
        assert entry.at is not None
        part = self.items[entry.at : entry.at + entry.nbytes]
        return np.frombuffer(part, stored_dtype(entry.dtype)).reshape(entry.shape)

    def as_json(self) -> dict[str, Any]:
        """Returns the manifest as JSON values."""
        defaults = {field.name: field.default for field in dataclasses.fields(ArrayEntry)}
        entries = {
            name: {key: value for key, value in vars(entry).items() if value != defaults[key]}
            for name, entry in self.entries.items()
        }
        body = {"entries": entries, "items": base64.b64encode(self.items).decode()}
        body |= {"extra": self.extra, "step": self.step}
        return {"format": FORMAT, **body, "crc32": _crc_of(body)}

    def encoded(self) -> np.ndarray:
        """Returns the manifest as an array of bytes.

        Raises:
            InvalidValueError: It would be larger than `decoded` accepts.
        """
        text = json.dumps(self.as_json(), separators=(",", ":")).encode()
        if is_too_much(text):
            raise InvalidValueError(
                "the checkpoint",
                "the manifest, with extra= and small tallax variables, is too large.",
                got=f"{len(text)} bytes of JSON",
                expected=f"{MOST} bytes at most, and {_MANY} values",
                fix="a separate file for large values in extra=; tallax.Counter(shape=...) for many counts",
            )
        return np.frombuffer(text, np.uint8)

    @classmethod
    def decoded(cls, array: Any) -> Manifest:
        """Returns the manifest in an array of bytes.

        Raises:
            CheckpointError: The bytes are not a manifest, or that of a later version.
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
        version = found.get("format") if isinstance(found, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise CheckpointError(
                "the checkpoint",
                "was written by a newer tallax than this one.",
                got=f"format {version}",
                expected=f"format {FORMAT}",
                fix="pip install --upgrade tallax",
            )
        if version != FORMAT:
            raise damaged("its manifest has no format")
        body: dict[str, Any] = {key: found.get(key) for key in ("entries", "items", "extra", "step")}
        if found.get("crc32") != _crc_of(body):
            raise damaged("its manifest differs from the bytes that were written")
        try:
            items = base64.b64decode(body["items"], validate=True)
            entries = {_checked_name(name): _entry(entry, len(items)) for name, entry in body["entries"].items()}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise damaged(f"its manifest cannot be parsed ({error})") from None
        step = body["step"]
        return cls(entries, items, body["extra"], step if isinstance(step, int) else None)


def is_too_much(text: bytes, *, times: int = 1) -> bool:
    """Returns whether JSON is too large to be read, as text or as Python objects."""
    return len(text) > times * MOST or sum(map(text.count, (b",", b"[", b"{"))) > times * _MANY


def damaged(what: str) -> CheckpointError:
    """Returns the error for a damaged checkpoint."""
    return CheckpointError(
        "the checkpoint",
        "is damaged or was tampered with.",
        got=what,
        fix="restore an earlier one: tallax.Checkpoints(folder).restore(model, step=...)",
    )


def _crc_of(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("a name that no object has")
    return name


def _entry(found: dict[str, Any], size: int) -> ArrayEntry:
    types = {field.name: field.type for field in dataclasses.fields(ArrayEntry)}
    for key, value in found.items():
        expected = {"str": str, "bool": bool, "tuple[int, ...]": list}.get(str(types[key]), int)
        if type(value) is not expected:
            raise ValueError(f"{key} of an entry is a {type(value).__name__}")
    shape = tuple(found["shape"])
    if not all(type(axis) is int and axis >= 0 for axis in shape) or len(shape) > 32:
        raise ValueError("an entry has no shape")
    entry = ArrayEntry(**{**found, "shape": shape})
    if entry.at is not None and not 0 <= entry.at <= entry.at + entry.nbytes <= size:
        raise ValueError("an item lies outside of the items")
    if entry.kind == "Counter" and (entry.dtype != "uint32" or entry.shape[-1:] != (2,)):
        raise ValueError("a count is not made of words")
    return entry


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: its manifest, and its arrays or their outline.

    Attributes:
        manifest: The manifest. If tallax did not write the checkpoint, it is inferred from the arrays.
        arrays: The arrays by name.
        is_foreign: Whether another program wrote it, so that the names may differ from those of tallax.
    """

    manifest: Manifest
    arrays: dict[str, Any]
    is_foreign: bool = False

    @classmethod
    def of(cls, tree: Any, manifest: Manifest | None = None) -> Source:
        """Returns the source for nested dicts of arrays, or of any objects with a shape and a dtype.

        Raises:
            CheckpointError: The manifest and the arrays differ.
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
                    raise CheckpointError(
                        name,
                        "differs in dtype from the saved array; Orbax casts to the requested dtypes, and JAX casts "
                        "64-bit arrays.",
                        got=f"{dtype}{list(shape)}",
                        expected=f"{entry}, as the manifest says",
                        fix="request tallax.checkpoint_target(metadata, model) from Orbax; "
                        "or restore an earlier checkpoint",
                    )
                raise damaged(f"{name} is {dtype}{list(shape)}, and {entry} in the manifest")
        return cls(manifest, leaves)

    @classmethod
    def _foreign(cls, leaves: dict[str, Any]) -> Source:
        """Returns the source for a tree that tallax did not write, such as an `nnx.State`."""
        names = without_value_levels(leaves)
        arrays = {names[name]: stored(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items()}
        entries = {name: ArrayEntry("", str(np.dtype(leaf.dtype)), tuple(leaf.shape)) for name, leaf in arrays.items()}
        return cls(Manifest(entries), arrays, is_foreign=True)


def arrays_in(tree: Any, *, quoted: bool) -> dict[str, Any]:
    """Returns the arrays of nested dicts, or their outline, by name."""
    try:
        flat = jax.tree_util.tree_leaves_with_path(tree)
        leaves = {joined(path, quoted=len(path) if quoted else 0): leaf for path, leaf in flat}
    except (TypeError, ValueError, RecursionError):
        leaves = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, bool | int | float | complex):
            leaves[name] = np.asarray(leaf)
    arrays = (hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves.values())
    if not leaves or "" in leaves or not all(arrays):
        raise CheckpointError(
            "the checkpoint",
            "is not a tree of arrays.",
            got=describe(tree),
            fix="a tree that Orbax restored from tallax.to_checkpoint(...) or nnx.state(model)",
        )
    return leaves
