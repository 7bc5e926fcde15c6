# SPDX-License-Identifier: Apache-2.0
"""`Placeholder`: the raw value of a Variable between two calls of the compiled step that owns the array."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import jax
from flax import nnx

from tallax._errors import StateOwnedByStepError


class OwnedAttributeError(StateOwnedByStepError, AttributeError):
    """An attribute of an array was read while a compiled step owns the array.

    It is an `AttributeError` too, so `hasattr` and `getattr` with a default work, by which libraries tell arrays from
    other leaves.
    """


class Placeholder:
    """Stands for a value that a compiled step owns. It returns the current value to the variable, and raises otherwise.

    Shape and dtype never change, so they can be read at any time. Every other use raises, by whichever way it comes:
    operators, indexing, NumPy (`__array__`), JAX (`__jax_array__`), methods of arrays (`__getattr__`) and pickling.

    A subclass knows the step: it defines `name`, `_get` and `_set`.

    Attributes:
        variable: The Variable whose value it stands for. Copies of the Variable, such as those in `nnx.state(model)`,
            cannot be read, because their value would change with every step.

    Args:
        variable: The Variable.
        value: The shape, dtype and sharding of the value.
    """

    __slots__ = ("_aval", "variable")

    def __init__(self, variable: Any, value: jax.ShapeDtypeStruct):
        self.variable, self._aval = variable, value

    @property
    def name(self) -> str:
        """The name of the Variable in errors."""
        raise NotImplementedError

    def _get(self) -> Any:
        """Returns the current value."""
        raise NotImplementedError

    def _set(self, value: Any) -> None:
        """Replaces the current value."""
        raise NotImplementedError

    def is_readable_by(self, variable: Any) -> bool:
        """Returns whether `read` would return a value for this tallax variable."""
        return variable is self.variable and not variable._per_replica

    def read(self, variable: Any) -> Any:
        """Returns the current value to the tallax variable. Raises for a copy of it."""
        if not self.is_readable_by(variable):
            self._refuse()
        return self._get()

    def write(self, variable: Any, value: Any) -> None:
        """Replaces the current value for the tallax variable. Raises for a copy of it."""
        if not self.is_readable_by(variable):
            self._refuse()
        self._set(value)

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
        return f"<{self.name}: owned by a compiled step; step.sync() returns it>"

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
                    return user is not self.variable
            frame = frame.f_back
        return False

    def _error(self, kind: type[StateOwnedByStepError] = StateOwnedByStepError) -> StateOwnedByStepError:
        if self.is_copied():
            return no_value(self.name, kind)
        return kind(
            self.name,
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
    setattr(Placeholder, f"__{_name}__", Placeholder._refuse)
    setattr(Placeholder, f"__r{_name}__", Placeholder._refuse)
for _name in ("lt", "le", "gt", "ge"):
    setattr(Placeholder, f"__{_name}__", Placeholder._refuse)
