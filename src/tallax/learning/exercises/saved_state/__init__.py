# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a checkpoint that forgets a buffer."""

from __future__ import annotations

import os
import tempfile
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claims, Wrong, close, number, shown
from tallax.variables import Counter

CLAIMS = Claims()
NAMES = ("Model", "save", "restore")
_STEP = 16_777_217  # the first integer that float32 does not have


def _trained(solution: ModuleType) -> Any:
    model = solution.Model(2)
    model.kernel.set_value(jnp.array([1.5, -2.5]))
    model.bias.set_value(jnp.array([0.25, 4.0]))
    if isinstance(model.step, Counter):
        model.step.set(_STEP)
    else:
        model.step.set_value(jnp.asarray(_STEP, model.step.get_value().dtype))
    return model


@CLAIMS("every Variable comes back, with its value and dtype")
def _restores(solution: ModuleType) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.npz")
        model, new = _trained(solution), solution.Model(2)
        due = {name: shown(getattr(model, name)) for name in ("kernel", "bias", "step")}
        solution.save(model, path)
        solution.restore(new, path)
    if not close(number(new.kernel), [1.5, -2.5]):
        is_alone = close(number(new.bias), [0.25, 4.0])
        raise Wrong("kernel_forgotten" if is_alone else "in_memory", f"kernel is {shown(new.kernel)}", due["kernel"])
    lost = [name for name, old in (("bias", 0.0), ("step", 0)) if np.all(number(getattr(new, name)) == old)]
    if lost:
        mistake = "parameters_only" if len(lost) == 2 else f"{lost[0]}_forgotten"
        raise Wrong(mistake, f"{lost[0]} is {shown(getattr(new, lost[0]))}", due[lost[0]])
    for name in ("kernel", "bias", "step"):
        got, expected = number(getattr(new, name)), number(getattr(model, name))
        if got.dtype != expected.dtype or not np.array_equal(got, expected):
            raise Wrong("cast", f"{name} is {got.dtype} {shown(got)}", f"{expected.dtype} {shown(expected)}")


@CLAIMS("the values come from the file")
def _reads_the_file(solution: ModuleType) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, moved = os.path.join(folder, "model.npz"), os.path.join(folder, "moved.npz")
        solution.save(_trained(solution), path)
        solution.save(solution.Model(2), os.path.join(folder, "other.npz"))
        os.rename(path, moved)
        new = solution.Model(2)
        try:
            solution.restore(new, moved)
        except (KeyError, FileNotFoundError) as error:
            raise Wrong("in_memory", f"a file that was moved raises {type(error).__name__}", "its values") from error
        if not close(number(new.bias), [0.25, 4.0]):
            raise Wrong("in_memory", f"bias of a file that was moved is {shown(new.bias)}", [0.25, 4.0])


class _Other(nnx.Module):
    def __init__(self, width: int = 3):
        self.inner = nnx.Linear(2, width, rngs=nnx.Rngs(0))
        self.threshold = nnx.BatchStat(jnp.zeros(()))


@CLAIMS("other models are saved and restored as well")
def _other_models(solution: ModuleType) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.npz")
        model, new = _Other(), _Other()
        bias: Any = model.inner.bias
        model.threshold.set_value(jnp.array(7.0))
        bias.set_value(jnp.arange(3.0))
        try:
            solution.save(model, path)
            solution.restore(new, path)
        except (AttributeError, KeyError) as error:
            raise Wrong("fixed_names", f"{type(error).__name__}: {error}", "any model") from error
        if float(new.threshold[...]) != 7.0 or not close(number(new.inner.bias), [0.0, 1.0, 2.0]):
            raise Wrong("fixed_names", f"threshold of another model is {shown(new.threshold)}", "7.0")


class _Wider(nnx.Module):
    """Has the names of `Model`, one more, and arrays of other shapes."""

    def __init__(self, experts: int, *, extra: bool):
        self.kernel = nnx.Param(jnp.zeros(experts))
        self.bias = nnx.Variable(jnp.zeros(experts))
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))
        if extra:
            self.temperature = nnx.Variable(jnp.array(5.0))


@CLAIMS("a file that does not fit raises an error and changes nothing")
def _refuses(solution: ModuleType) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.npz")
        saved = _Wider(2, extra=False)
        saved.kernel.set_value(jnp.array([1.5, -2.5]))
        solution.save(saved, path)
        for new, mistake in ((_Wider(2, extra=True), "silent_default"), (_Wider(4, extra=False), "other_shape")):
            try:
                solution.restore(new, path)
            except Exception:
                if np.any(np.asarray(new.kernel[...])):
                    raise Wrong("partly_restored", f"kernel is {shown(new.kernel)} after an error", "zeros") from None
            else:
                lacking = "temperature is not in the file" if mistake == "silent_default" else "the file has 2 experts"
                raise Wrong(mistake, f"no error, though {lacking}", "an error")
