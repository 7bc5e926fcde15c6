# SPDX-License-Identifier: Apache-2.0
"""The raw values of a Variable that are not arrays, because a compiled step has the array: `Held` and `Pending`.

Between the calls of the step, a `Held` takes the place of every value. Inside its trace, a count is a `Pending`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tallax import _uint64
from tallax._errors import StateOwnedByStepError

# Names in the jaxpr of a step, by which the analysis recognizes the permitted uses of a `Pending`.
AT_MOST = "tallax.at_most:"  # an increment, with its upper bound
READ = "tallax.read"  # a read of both parts together


class OwnedAttributeError(StateOwnedByStepError, AttributeError):
    """An attribute of an array was read while a compiled step owns the array.

    It is an `AttributeError` too, so `hasattr` and `getattr` with a default work, by which libraries tell arrays from
    other leaves.
    """


class Held:
    """Stands for a value that a compiled step owns. It returns the current value to the variable, and raises otherwise.

    Shape and dtype never change, so they can be read at any time. Every other use raises, by whichever way it comes:
    operators, indexing, NumPy (`__array__`), JAX (`__jax_array__`), methods of arrays (`__getattr__`) and pickling.

    Args:
        variable: The Variable whose value it stands for. Copies of the Variable, such as those in `nnx.state(model)`,
            cannot be read, because their value would change with every step.
        name: The name of the Variable in errors.
        value: The shape, dtype and sharding of the value.
        read: Returns the value. None if only `step.sync()` returns it.
        write: Replaces the value.
    """

    __slots__ = ("_aval", "_name", "_read", "_variable", "_write")

    def __init__(
        self,
        variable: Any,
        name: str,
        value: jax.ShapeDtypeStruct,
        read: Callable[[], Any] | None = None,
        write: Callable[[Any], None] | None = None,
    ):
        self._variable, self._name, self._aval, self._read, self._write = variable, name, value, read, write

    def is_readable_by(self, variable: Any) -> bool:
        """Returns whether `read` would return a value for this variable."""
        return self._read is not None and variable is self._variable

    def read(self, variable: Any) -> Any:
        """Returns the current value to the Variable. Raises for a copy of the Variable."""
        if self._read is None or variable is not self._variable:
            self._refuse()
        return self._read()

    def write(self, variable: Any, value: Any) -> None:
        """Replaces the current value for the Variable. Raises for a copy of the Variable."""
        if self._write is None or variable is not self._variable:
            self._refuse()
        self._write(value)

    @property
    def name(self) -> str:
        """The name of the Variable in errors."""
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value. For a Counter, this is the shape of its limbs."""
        return self._aval.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the value."""
        return self._aval.dtype

    @property
    def ndim(self) -> int:
        """The number of axes of the value."""
        return self._aval.ndim

    @property
    def size(self) -> int:
        """The number of entries of the value."""
        return self._aval.size

    @property
    def nbytes(self) -> int:
        """The number of bytes of the value."""
        return self._aval.size * self._aval.dtype.itemsize

    @property
    def sharding(self) -> Any:
        """The sharding of the value."""
        return self._aval.sharding

    def __repr__(self) -> str:
        # JAX shows this in its own error if such a value is passed to one of its functions.
        return f"<{self._name}: owned by a compiled step; step.sync() returns it>"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise self._error()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # protocols that Python and NumPy look for on any object
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        raise self._error(OwnedAttributeError)

    @property
    def __jax_array__(self) -> NoReturn:
        # JAX looks this up on each leaf that is not an array, and calls it or raises its own `TypeError`. A property
        # raises already when it is looked up, so `jnp.copy`, `jax.jit` and `jax.device_put` all end here.
        raise self._error()

    def is_copied(self) -> bool:
        """Returns whether the value is used through a copy of the Variable, as far as the calling frames tell.

        The placeholder is the raw value of the Variable and of all its copies, and most uses do not pass the Variable.
        But the frames between a use and this error have it as a local variable, usually as `self`.
        """
        frame = sys._getframe(1)
        while frame is not None:
            for user in frame.f_locals.values():
                if isinstance(user, nnx.Variable) and user.get_raw_value() is self:
                    return user is not self._variable
            frame = frame.f_back
        return False

    def _error(self, kind: type[StateOwnedByStepError] = StateOwnedByStepError) -> StateOwnedByStepError:
        if self.is_copied():
            return no_value(self._name, kind)
        return kind(
            self._name,
            "is owned by a compiled step, which keeps the state on the device between its calls.",
            got="a use of the value, or of a copy of the model or its state, between two calls of the step",
            fix="step.sync() first, to return all state; or step.read(function), to compute with it on the device; "
            "or step.collect(), to read the tallax variables only",
        )

    __array__ = __getitem__ = __setitem__ = __iter__ = __len__ = __reduce_ex__ = __deepcopy__ = __copy__ = _refuse
    __float__ = __int__ = __bool__ = __index__ = __complex__ = __neg__ = __pos__ = __abs__ = __invert__ = _refuse
    __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


def no_value(name: str, kind: type[StateOwnedByStepError] = StateOwnedByStepError) -> StateOwnedByStepError:
    """Returns the error for the use of a copy that was made while a compiled step owned the value."""
    return kind(
        name,
        "is a copy of a Variable, made while a compiled step owned the value, so the copy has none.",
        got="a clone of the model, or a state of it",
        fix="step.sync() first, and then copy again; or step.read(function), of a function that returns the copy",
    )


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift"):
    setattr(Held, f"__{_name}__", Held._refuse)
    setattr(Held, f"__r{_name}__", Held._refuse)
for _name in ("lt", "le", "gt", "ge"):
    setattr(Held, f"__{_name}__", Held._refuse)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pending:
    """The raw value of a `Counter` inside `tallax.compile_step`.

    All counts of a step are in one array on the device. A count is sliced out of it only if it is read. `added` is a
    plain word, which XLA folds and concatenates with the words of the other counters. There are no carries until the
    whole array is added to. If a step does anything but read or increment a count, it is traced again with the whole
    count (`tallax.compiling._jaxpr_analysis`), so a `Pending` need not be exact then.

    Attributes:
        base: The limbs before the step, uint32[*shape, 2].
        added: The sum of the increments in the step, uint32[*shape]. The bounds of the increments show that it fits.
    """

    base: Any
    added: Any

    @property
    def limbs(self) -> jax.Array:
        """The current count. When Flax prints a module, the parts are not arrays, and `base` is returned."""
        if not isinstance(self.base, jax.Array | np.ndarray):
            return self.base
        base, added = (checkpoint_name(jnp.asarray(part), READ) for part in (self.base, self.added))
        return _uint64.add(base, _uint64.pair(added))

    @property
    def shape(self) -> tuple[int, ...]:
        """The same as for the limbs."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The same as for the limbs."""
        return self.base.dtype

    def plus(self, values: Any, most: int) -> Pending:
        """Returns the count after an addition of `values`, uint32, each at most `most`."""
        if not isinstance(values, jax.Array) and values.ndim == 0 == self.added.ndim:
            return Pending(self.base, self.added + values)  # a literal is its own bound
        values = jnp.broadcast_to(jnp.asarray(values), self.added.shape)
        return Pending(self.base, self.added + checkpoint_name(values, f"{AT_MOST}{most}"))

    def at(self, limbs: Any) -> Pending:
        """Returns the count after it was overwritten by `limbs`. The step is then traced again with the whole count."""
        # A zero computed from the word itself is not an increment, so the analysis sees that the count was written.
        return Pending(jnp.asarray(limbs), self.added * np.uint32(0))
