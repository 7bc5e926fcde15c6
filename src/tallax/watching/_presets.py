# SPDX-License-Identifier: Apache-2.0
"""The presets: numbers with a name in the field, for the modules that they apply to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._walk import WATCHED
from tallax.watching._params import UPDATE_RATIO
from tallax.watching._preset_statistics import (
    Attention,
    DeadUnits,
    ExpertLoad,
    MassiveActivations,
    UpdateRatio,
)
from tallax.watching._select import Found, chosen_modules
from tallax.watching._step_statistic import StepStatistic

# Makes the statistic of a module from the options of the watch, or is the reason why the module cannot be seen. If the
# preset does not apply, it is None.
_Maker = Callable[[Any], Callable[..., StepStatistic] | str | None]


@dataclass(frozen=True)
class Preset:
    """Something to watch, for `tallax.watch(model, presets=...)`.

    Attributes:
        name: Its name in the field, which is the role in names: `layers/0/up:dead_units`.
        sites: The modules, as in `tallax.watch`.
        maker: Makes the statistic of a module.
        function: The attribute of the modules whose calls are watched; None for their output, or their Params.
    """

    name: str
    sites: Any
    maker: _Maker
    function: str | None = None

    @property
    def calls(self) -> bool:
        """True if it takes the output of the modules' methods."""
        return self.function is None and self.name != UPDATE_RATIO


def dead_units(sites: Any, *, threshold: float = 0.0, units: int | None = None) -> Preset:
    """Returns a preset that counts the units of a layer that never fired: whose output was never above a threshold.

    Watch the layer before a ReLU, or the module with the ReLU in it. The result is a `DeadUnitsResult`.

    Args:
        sites: The layers, as in `tallax.watch`.
        threshold: A unit fires if its output is larger.
        units: The size of the last axis of the output; by default that of the Params that the module owns.

    Raises:
        InvalidValueError: `threshold` is not finite, or `units` is not a positive integer.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise InvalidValueError(
            "dead_units", "threshold takes a finite number.", got=describe(threshold), fix="threshold=0.0"
        )
    _check_size("dead_units", "units", units)
    return Preset(
        "dead_units",
        sites,
        _with_width(units, "units", lambda width, **options: DeadUnits(width, threshold, **options)),
    )


def massive_activations(sites: Any = "**") -> Preset:
    """Returns a preset that keeps the largest magnitude of an output over its RMS, and when it came.

    The result is a `MassiveActivationsResult`. An output with an entry that is NaN or infinite is left out.

    Args:
        sites: The modules, as in `tallax.watch`. The blocks of a transformer show the residual stream.
    """
    return Preset("massive_activations", sites, lambda _: lambda **options: MassiveActivations(1, **options))


def attention(sites: Any = "**", *, function: str = "attention_fn", heads: int | None = None) -> Preset:
    """Returns a preset that keeps the largest logit and the entropy of each head: an `AttentionResult`.

    It sees the calls of a function in an attribute of the module, as in `nnx.MultiHeadAttention`, and computes the
    logits from its arguments a second time. A module that calls `nnx.dot_product_attention` itself is in
    `watch.unseen`; it is seen if it keeps the function in an attribute.

    Args:
        sites: The modules, as in `tallax.watch`; of those that `"**"` selects, the ones with the attribute.
        function: The attribute with the attention function, which is called like `nnx.dot_product_attention`.
        heads: The number of heads; by default the attribute `num_heads` of the module.

    Raises:
        InvalidTypeError: `function` is not the name of an attribute.
        InvalidValueError: `heads` is not a positive integer.
    """
    if not isinstance(function, str) or not function.isidentifier():
        raise InvalidTypeError(
            "attention",
            "function takes the name of an attribute.",
            got=describe(function),
            fix='function="attention_fn"',
        )
    _check_size("attention", "heads", heads)

    def maker(module: Any) -> Any:
        if not callable(vars(module).get(function)):
            if _calls_attention(type(module)):
                return (
                    f"it calls dot_product_attention itself; set self.{function} = nnx.dot_product_attention "
                    f"in __init__, and call self.{function}(query, key, value)"
                )
            return None if sites == "**" else f"it has no function in the attribute {function}"
        number = heads if heads is not None else getattr(module, "num_heads", None)
        if not isinstance(number, int):
            return "the number of its heads is unknown, as it has no attribute num_heads; pass heads="
        return lambda **options: Attention(number, **options)

    return Preset("attention", sites, maker, function)


def expert_load(sites: Any, *, top_k: int = 1, experts: int | None = None) -> Preset:
    """Returns a preset that counts the tokens of each expert, and how unequal they are: an `ExpertLoadResult`.

    The output of a router may be logits or probabilities of shape (..., experts), of which the `top_k` largest of each
    token are counted; or integers of any shape: the numbers of the experts that were chosen.

    Args:
        sites: The routers, as in `tallax.watch`.
        top_k: The number of experts for each token, if the router returns logits.
        experts: The number of experts; by default the size of the last axis of the Params that the router owns.

    Raises:
        InvalidValueError: `top_k` or `experts` is not a positive integer, or `top_k` is larger than `experts`.
    """
    _check_size("expert_load", "experts", experts)
    _check_size("expert_load", "top_k", top_k)
    if experts is not None and top_k > experts:
        raise InvalidValueError(
            "expert_load",
            "top_k must not be larger than the number of experts.",
            got=f"top_k={top_k}, experts={experts}",
            fix=f"top_k={experts}",
        )

    def make(width: int, **options: Any) -> StepStatistic:
        return ExpertLoad(width, min(top_k, width), **options)

    return Preset("expert_load", sites, _with_width(experts, "experts", make))


def update_ratio(sites: Any = "**") -> Preset:
    """Returns a preset that keeps the RMS of the updates of each Param over the RMS of the Param.

    It needs the optimizer, and both are those of all steps of the window. The result is a float, or float[layers] of a
    stack: infinite while a Param is zero, as biases are before the first step, and 0.0 before any update.

    Args:
        sites: The modules that own the Params, as in `tallax.watch`.
    """
    return Preset(UPDATE_RATIO, sites, lambda _: UpdateRatio)


def has_update_ratio(presets: Any) -> bool:
    """Returns whether a preset needs the optimizer."""
    found = presets if isinstance(presets, list | tuple) else [presets]
    return any(isinstance(preset, Preset) and preset.name == UPDATE_RATIO for preset in found)


def presets_of(model: Any, presets: Any) -> Iterator[tuple[Preset, Found, Callable[..., StepStatistic] | str]]:
    """Yields the modules that each preset applies to, with a function that makes the statistic, or a reason.

    Raises:
        InvalidTypeError: `presets` is not a preset or a list of presets.
        InvalidValueError: The sites of a preset select nothing that it applies to, or two presets are the same.
    """
    seen: set[tuple[str, str]] = set()
    for preset in presets if isinstance(presets, list | tuple) else [presets]:
        if not isinstance(preset, Preset):
            raise InvalidTypeError(
                "presets",
                "takes presets, which the functions of tallax.watching return.",
                got=describe(preset),
                fix="presets=[tallax.watching.update_ratio(), tallax.watching.attention()]",
            )
        made = [(each, preset.maker(each.module)) for each in chosen_modules(model, preset.sites)]
        found = [(each, maker) for each, maker in made if maker is not None]
        if not found:
            raise InvalidValueError(
                preset.name,
                f"the model has no module with a function in the attribute {preset.function}.",
                got=f"sites={preset.sites!r}",
                fix="function= with the attribute in which the modules keep their attention function",
            )
        for each, maker in found:
            if (each.name, preset.name) in seen:
                raise InvalidValueError(
                    preset.name,
                    "two presets of this name select the same module.",
                    got=each.name or "the model",
                    fix="one preset for all modules: sites=[...]",
                )
            seen.add((each.name, preset.name))
            yield preset, each, maker


def _with_width(given: int | None, unit: str, make: Callable[..., StepStatistic]) -> _Maker:
    def maker(module: Any) -> Any:
        width = given if given is not None else _width_of(module)
        if width is None:
            return f"the number of its {unit} is unknown, as its own Params do not share a last axis; pass {unit}="
        return lambda **options: make(width, **options)

    return maker


def _width_of(module: Any) -> int | None:
    """Returns the size of the last axis of the Params that a module owns itself; None if they do not share one."""
    sizes = {
        np.shape(value.get_raw_value())[-1:]
        for name, value in vars(module).items()
        if name != WATCHED and isinstance(value, nnx.Param)
    }
    return next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else None


def _calls_attention(kind: type) -> bool:
    """Returns whether a method of a class refers to the attention function of Flax or JAX by its name."""
    codes = (getattr(method, "__code__", None) for method in vars(kind).values())
    return any("dot_product_attention" in code.co_names for code in codes if code is not None)


def _check_size(preset: str, name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidValueError(preset, f"{name} takes a positive integer.", got=describe(value), fix=f"{name}=8")
