# SPDX-License-Identifier: Apache-2.0
"""The numbers of many tensors at once, in as few operations as their memory allows.

XLA's CPU backend needs 3 to 5 ms for the four reductions of a tensor in a step of a thousand tensors, of which most is
spent in passes over the whole program, and 20 ms for each kernel that is not from its library. So tensors of one size
are copied into one array and reduced together if they are so small that the copy does not matter, or if only every n-th
step copies them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tallax._arrays import is_traced
from tallax._mesh_axes import marked, varying_axes
from tallax.watching._lanes import in_one
from tallax.watching._reduction import Layout, Numbers, PackedNumbers, in_auto_axes, numbers_of

# Chosen by measuring the models of `benchmarks/watch.py`: compilation against the memory and the time of a step.
TINY = 2**12  # entries, of a tensor that may be kept until the end of a step
_SMALL = 2**14  # entries, of tensors that are copied into one in each step
_COPIED = 2**18  # entries, of tensors that are copied into one in the steps that are due
_SHARE = 2**18  # entries of all parameters, gradients or updates that one branch takes
_AT_ONCE = 3  # outputs of one shape that one branch takes, and which live until it does
_SHAPES = 2  # of outputs that wait for others


class Tensor(NamedTuple):
    """A tensor to reduce.

    Attributes:
        value: The tensor, or a pair of tensors whose difference is meant.
        leading: The number of axes of the stack of modules, which it begins with.
        layout: The rows of its statistic.
        is_split: Whether it may be split over devices.
        words: Its state, lanes or token, whose rows are split over devices as the numbers must be.
        is_squared: Whether the step computes the squares of the tensor too.
    """

    value: Any
    leading: int
    layout: Layout
    is_split: bool
    words: Any = None
    is_squared: bool = False

    @property
    def may_be_copied(self) -> bool:
        """True if the tensor may be put into one array with others."""
        return not self.is_split and not any(jax.typeof(self.first).sharding.spec)

    @property
    def first(self) -> jax.Array:
        """The tensor, or the first of the pair."""
        return self.value[0] if isinstance(self.value, tuple) else self.value

    @property
    def several(self) -> int:
        """The number of modules."""
        return math.prod(self.first.shape[: self.leading])

    @property
    def difference(self) -> jax.Array:
        """The tensor, or the difference of the pair."""
        return self.value[0] - self.value[1] if isinstance(self.value, tuple) else self.value


def numbers_of_tensors(
    tensors: Sequence[Tensor], due: Any, *, copied: int = _SMALL, share: int = _SHARE
) -> list[tuple[list[int], Numbers | PackedNumbers]]:
    """Returns the numbers of tensors in groups: the places of the tensors, and their numbers one after the other.

    Args:
        tensors: The tensors.
        due: Whether the tensors are looked at; None if they always are.
        copied: The number of entries up to which tensors are copied into one.
        share: The number of entries that one branch takes.
    """
    if not is_traced(due):
        due = None  # `update_together` drops the numbers if the update is not due
    found: list[tuple[list[int], Numbers | PackedNumbers]] = []
    for members in _shares(tensors, None if due is None else share):
        some = [tensors[k] for k in members]
        buckets = _buckets(some, copied)
        groups = [places for _, places in buckets]
        is_packed = due is not None and all(tensor.may_be_copied for tensor in some)
        if is_packed:
            groups = [list(itertools.chain(*groups))]

        def reduce(values: list[Any], some: Any = some, buckets: Any = buckets, is_packed: Any = is_packed) -> Any:
            given = [tensor._replace(value=value) for tensor, value in zip(some, values, strict=True)]
            numbers = [_numbers_of_bucket(length, [given[k] for k in places]) for length, places in buckets]
            return [PackedNumbers.of(numbers)] if is_packed else numbers

        values = [tensor.value for tensor in some]
        # Shapes without shardings, with which explicit axes could not be mixed.
        shapes = jax.eval_shape(reduce, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values))
        like = [
            jax.tree.map(lambda _, words=some[places[0]].words: jnp.zeros(1) if words is None else words[..., 0], each)
            for each, places in zip(shapes, groups, strict=True)
        ]
        numbers = in_auto_axes(functools.partial(_if_due, reduce=reduce), like)(due, values)
        found += [([members[k] for k in places], each) for places, each in zip(groups, numbers, strict=True)]
    return found


def _shares(tensors: Sequence[Tensor], limit: int | None) -> list[list[int]]:
    """Returns the tensors that are reduced in one go, or in one branch: those that differ on the same replicas.

    A branch takes only some, so that no other part of a step has to keep many of them. XLA would otherwise keep the old
    values of all parameters until the last gradient is known. Tensors of one size go together: XLA compiles a copy of
    them once for all branches that have equal shapes.
    """
    shares: dict[Any, list[list[int]]] = {}
    for k, tensor in enumerate(tensors):
        varying = frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(tensor.value)))
        is_large = limit is not None and tensor.first.size > TINY
        # Gradients apart from updates, which XLA may store in their place.
        kind = (isinstance(tensor.value, tuple), tensor.first.size) if is_large else None
        some = shares.setdefault((varying, kind), [[]])
        if limit is not None and is_large and sum(tensors[j].first.size for j in (*some[-1], k)) > limit:
            some.append([])
        some[-1].append(k)
    return [share for some in shares.values() for share in some if share]


def _if_due(due: Any, values: list[Any], *, reduce: Callable[[list[Any]], Any]) -> Any:
    if due is None:
        return reduce(values)
    varying = tuple(frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(values))))

    def zeros(values: list[Any]) -> Any:
        return jax.tree.map(lambda each: jnp.zeros(each.shape), jax.eval_shape(reduce, values))

    def branch(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values: jax.tree.map(lambda column: marked(column, varying), make(values))

    return jax.lax.cond(due, branch(reduce), branch(zeros), values)


def _buckets(tensors: Sequence[Tensor], copied: int) -> list[tuple[int | None, list[int]]]:
    """Returns the places of the tensors that are reduced together, and their length; None for a tensor on its own.

    Those of up to 2**14 entries have zeros behind the shorter ones; larger ones have one size. Pairs come last, and
    tensors of one shape together, as XLA compiles equal concatenations once.
    """

    def kind(k: int) -> tuple[bool, tuple[int, ...]]:
        return isinstance(tensors[k].value, tuple), tensors[k].first.shape

    alone: list[tuple[int | None, list[int]]] = []
    together: dict[int, list[int]] = {}
    for k, tensor in enumerate(tensors):
        x = tensor.first
        if x.size <= copied and tensor.may_be_copied and jnp.issubdtype(x.dtype, jnp.floating):
            entries = math.prod(x.shape[tensor.leading :])
            length = 1 << max(entries - 1, 0).bit_length() if x.size <= _SMALL else entries
            together.setdefault(length, []).append(k)
        else:
            alone.append((None, [k]))
    for length, places in together.items():
        if len(places) == 1:
            alone.append((None, places))
        else:
            alone.append((length, sorted(places, key=kind)))
    return alone


def _numbers_of_bucket(length: int | None, tensors: Sequence[Tensor]) -> Numbers:
    if length is None:
        (tensor,) = tensors
        return numbers_of(tensor.difference, tensor.layout, tensor.leading, is_squared=tensor.is_squared)

    def table(values: Sequence[jax.Array], start: int = 0) -> jax.Array:
        return in_one([_padded(x, tensors[start + k].several, length) for k, x in enumerate(values)])

    single = [tensor.value for tensor in tensors if not isinstance(tensor.value, tuple)]
    pairs = [tensor.value for tensor in tensors if isinstance(tensor.value, tuple)]
    if length > TINY or not pairs:
        # One by one, since XLA would put the old values together at the beginning of the step, and keep the result.
        x = table([tensor.difference for tensor in tensors])
    else:
        new, old = (table(each, len(single)) for each in zip(*pairs, strict=True))
        x = jnp.concatenate([table(single), new - old]) if single else new - old
    sizes = [(tensor.first.size // tensor.several, tensor.several) for tensor in tensors]
    entries = tuple(size for size, several in sizes for _ in range(several))
    return dataclasses.replace(numbers_of(x, Layout(), 1), entries=entries)


def _padded(x: jax.Array, several: int, length: int) -> jax.Array:
    """Returns float32[several, length] of a tensor that has at most `length` entries in each of several modules."""
    size = x.size // several
    flat, behind = x.astype(jnp.float32).reshape(several, size), [(0, 0, 0), (0, length - size, 0)]
    return flat if size == length else jax.lax.pad(flat, jnp.float32(0), behind)


class Collector:
    """Collects the tensors that the sites of a watch see in a forward or a backward pass, each once.

    They must belong to one trace. Tiny ones, and those that only some steps look at, are reduced together.

    Args:
        due: Whether the step is due; None if every step is.
        is_split: Whether tensors may be split over devices. To copy them into one would then take collectives.
    """

    def __init__(self, due: Any, *, is_split: bool):
        self.due, self.is_split, self.owners = due, is_split, set[Any]()
        self._tiny: list[tuple[Any, Tensor]] = []
        self._waiting: dict[Any, list[tuple[Any, Tensor]]] = {}  # by shape, the oldest first
        self._groups: list[tuple[list[Any], Numbers | PackedNumbers]] = []
        self._known: dict[int, tuple[Any, Any]] = {}  # tensors by id, with their owners
        self._twins: list[tuple[Any, Any]] = []  # owners whose tensor is that of another owner

    @property
    def is_skipped(self) -> bool:
        """True if it is known that the step is not due."""
        return self.due is not None and not is_traced(self.due) and not self.due

    def add(self, owner: Any, x: jax.Array, layout: Layout, lanes: jax.Array, *, known_as: Any = None) -> None:
        """Adds the first tensor of an owner.

        Args:
            owner: Anything that can be hashed.
            x: The tensor.
            layout: The rows of the statistic.
            lanes: The lanes of the step, or the token, that are split over devices as the numbers must be.
            known_as: The array that other sites see if theirs is the same tensor; `x` by default.
        """
        self.owners.add(owner)
        key = x if known_as is None else known_as
        _, twin = self._known.setdefault(id(key), (key, owner))  # kept, so that no other array gets this id
        tensor = Tensor(x, 0, layout, self.is_split, lanes)
        if twin != owner:
            self._twins.append((owner, twin))
        elif tensor.may_be_copied and x.size <= TINY:
            self._tiny.append((owner, tensor))
        elif tensor.may_be_copied and x.size <= _COPIED and self.due is not None:
            waiting = self._waiting.setdefault(x.shape, [])
            waiting.append((owner, tensor))
            if len(waiting) == _AT_ONCE:
                self._reduce(self._waiting.pop(x.shape))
            elif len(self._waiting) > _SHAPES:
                self._reduce(self._waiting.pop(next(iter(self._waiting))))
        else:
            self._reduce([(owner, tensor)])

    def rename(self, old: Any, new: Any) -> None:
        """Notes that a tensor is passed on as another array with the same entries."""
        if (known := self._known.get(id(old))) is not None:
            self._known[id(new)] = new, known[1]

    def finish(self) -> list[tuple[list[Any], Numbers | PackedNumbers]]:
        """Returns the owners and their numbers, one after the other."""
        for waiting in (*self._waiting.values(), self._tiny):
            self._reduce(waiting)
        groups = self._groups
        places = {owner: (numbers, k, len(owners)) for owners, numbers in groups for k, owner in enumerate(owners)}
        for owner, twin in self._twins:
            numbers, k, length = places[twin]
            groups.append(([owner], numbers if length == 1 else numbers[k]))
        self._groups, self._twins, self._known = [], [], {}
        return groups

    def _reduce(self, pairs: list[tuple[Any, Tensor]]) -> None:
        owners = [owner for owner, _ in pairs]
        tensors, share = [tensor for _, tensor in pairs], _AT_ONCE * _COPIED
        for members, numbers in numbers_of_tensors(tensors, self.due, copied=_COPIED, share=share):
            self._groups.append(([owners[k] for k in members], numbers))
        pairs.clear()
