# SPDX-License-Identifier: Apache-2.0
"""`coordinate_check`: how the size of each output grows with the width of a model, as muP checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax.runs._site_table import aligned
from tallax.watching._table import rows_of
from tallax.watching._watch import watch


@dataclass(frozen=True, eq=False)
class CoordinateCheckResult:
    """The RMS of each output by width. `print` shows a table, the largest exponents after the last step first.

    Attributes:
        widths: The widths, ascending.
        rms: float64[steps + 1, widths] by the path of the module: before the first step, and after each.
        exponents: float64[steps + 1] by the path: the slope of log(rms) over log(width), fitted by least squares. In
            muP it is about 0 or less after every step. NaN if an RMS is 0 or not finite.
    """

    widths: tuple[int, ...]
    rms: Mapping[str, np.ndarray]
    exponents: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        """Returns the table."""
        steps = len(next(iter(self.exponents.values()))) - 1
        ends = [0, steps] if steps else [0]
        headings = [f"width {width}" for width in self.widths] + [f"exponent, step {step}" for step in ends]
        rows = [("site", *headings)]
        for name in sorted(self.exponents, key=lambda name: -np.nan_to_num(self.exponents[name][-1], nan=np.inf)):
            exponents = [f"{self.exponents[name][step]:+.2f}" for step in ends]
            rows.append((name or "the model", *(f"{x:.3g}" for x in self.rms[name][-1]), *exponents))
        title = f"RMS of outputs after {steps} steps" if steps else "RMS of outputs at the start"
        return "\n".join([title, *aligned(rows)])

    __str__ = __repr__


def coordinate_check(
    factory: Callable[[int], Any],
    widths: Sequence[int],
    *inputs: Any,
    train_step: Callable[..., Any] | None = None,
    steps: int = 0,
    sites: Any = "**",
) -> CoordinateCheckResult:
    """Makes a model at several widths, trains each for some steps, and compares the sizes of its outputs.

    If a parametrization is right (muP), no output grows with the width, neither at the start nor while it is trained.

    Args:
        factory: A function from a width to a model, or to a pair of a model and its optimizer.
        widths: Two or more widths.
        *inputs: The arguments of the model.
        train_step: `train_step(model, optimizer, *inputs)`, or `train_step(model, *inputs)` if the factory makes a
            model alone. It may be compiled with `nnx.jit`.
        steps: The number of training steps.
        sites: The modules to compare, as in `tallax.watch`.

    Returns:
        The RMS of each output and the fitted exponent, before and after each step.

    Raises:
        InvalidTypeError: The factory does not make a model.
        InvalidValueError: There are not two different widths, there are steps but no `train_step`, no output is seen,
            or the model has other modules at another width.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> def factory(width):
        ...     init = nnx.initializers.normal(1.0)  # too large: muP has width**-0.5 here
        ...     return nnx.Linear(width, 4, kernel_init=init, rngs=nnx.Rngs(0))
        >>> result = tallax.watching.coordinate_check(lambda width: nnx.Sequential(
        ...     nnx.Linear(2, width, rngs=nnx.Rngs(1)), factory(width)), [64, 256, 1024], jnp.ones((8, 2)))
        >>> result.exponents["layers/1"].round(1) > 0.2
        array([ True])
    """
    _check(factory, widths, train_step, steps)
    widths = sorted(set(widths))
    sizes = [_sizes(factory, width, inputs, train_step, steps, sites) for width in widths]
    names = list(sizes[0])
    for width, found in zip(widths, sizes, strict=True):
        if set(found) != set(names):
            raise InvalidValueError(
                "factory",
                "must make a model with the same modules at each width.",
                got=f"at width {width}, {', '.join(sorted(set(found) ^ set(names))[:4])} differ",
                fix="sites= with the modules that all widths have",
            )
    rms = {name: np.stack([found[name] for found in sizes], -1) for name in names}
    return CoordinateCheckResult(tuple(widths), rms, {name: _slopes(widths, each) for name, each in rms.items()})


def _sizes(
    factory: Callable[[int], Any],
    width: int,
    inputs: Sequence[Any],
    train_step: Callable[..., Any] | None,
    steps: int,
    sites: Any,
) -> dict[str, np.ndarray]:
    """Returns float64[steps + 1] by site: the RMS of the outputs of a model."""
    made = factory(width)
    objects = made if isinstance(made, tuple) else (made,)
    if not isinstance(objects[0], nnx.Module):
        raise _no_factory(objects[0])
    watched = watch(objects[0], sites=sites)
    forward = nnx.jit(lambda model, inputs: model(*inputs))
    found: list[dict[str, float]] = []
    for step in range(steps + 1):
        if step and train_step is not None:
            train_step(*objects, *inputs)
        watched.reset()
        forward(objects[0], inputs)
        results = watched.result().items()
        found.append({row.name: row.numbers["rms"] for name, result in results for row in rows_of(name, result)})
    if not found[0]:
        raise InvalidValueError(
            "sites",
            "no output of a chosen module was seen.",
            got="; ".join(sorted(set(watched.unseen.values()))[:2]),
            fix="a model in training mode (model.train()), and sites that it calls",
        )
    names = {name: name.replace(":output", "") for name in found[0]}
    return {short: np.array([each.get(name, 0.0) for each in found]) for name, short in names.items()}


def _slopes(widths: Sequence[int], rms: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log(rms)
    x = np.log(np.asarray(widths, np.float64))
    x = x - x.mean()
    with np.errstate(invalid="ignore"):
        return (logs * x).sum(-1) / (x * x).sum()


def _no_factory(got: Any) -> InvalidTypeError:
    return InvalidTypeError(
        "factory",
        "takes a function from a width to a model, or to a model and its optimizer.",
        got=describe(got),
        fix="lambda width: Model(width, nnx.Rngs(0))",
    )


def _check(factory: Any, widths: Any, train_step: Any, steps: Any) -> None:
    if not callable(factory) or isinstance(factory, nnx.Module):
        raise _no_factory(factory)
    are_sizes = isinstance(widths, list | tuple | range) and all(
        isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in widths
    )
    if not are_sizes or len(set(widths)) < 2:
        raise InvalidValueError(
            "widths",
            "takes two or more different positive integers.",
            got=describe(widths),
            fix="[64, 128, 256, 512]",
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or (steps and train_step is None):
        raise InvalidValueError(
            "steps",
            "takes the number of training steps, which train_step runs.",
            got=f"steps={steps!r}" + ("" if train_step is not None else ", no train_step"),
            fix="coordinate_check(factory, widths, x, y, train_step=train_step, steps=4)",
        )
