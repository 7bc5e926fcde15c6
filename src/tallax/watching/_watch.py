# SPDX-License-Identifier: Apache-2.0
"""`watch` and the `Watch` that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._walk import WATCHED, path_name
from tallax.reading import collect
from tallax.variables import Counter
from tallax.watching import _params
from tallax.watching._maker import Factory, Maker
from tallax.watching._notes import notes_of
from tallax.watching._placing import devices_of
from tallax.watching._preset_statistics import is_empty, is_of_preset
from tallax.watching._presets import Preset, has_update_ratio, presets_of
from tallax.watching._select import check_methods, chosen_modules, functions_asked_for, modules_of, names_in
from tallax.watching._site import GRADIENT, HISTOGRAM, INPUT, OUTPUT, Site
from tallax.watching._stacks import stack_shapes
from tallax.watching._summary import SummaryResult, is_idle
from tallax.watching._table import table
from tallax.watching._watched_classes import base_of, watched_optimizer_class


def watch(
    model: nnx.Module,
    optimizer: Any = None,
    sites: Any = "**",
    *,
    inputs: bool = False,
    outputs: bool = True,
    output_gradients: bool = False,
    parameters: bool = False,
    gradients: bool = False,
    updates: bool = False,
    method: str | tuple[str, ...] = "__call__",
    statistic: Factory | None = None,
    histograms: bool = False,
    every: int = 1,
    window: int | None = None,
    step: int | Counter | None = None,
    presets: Preset | Sequence[Preset] = (),
    stacks: str | list[str] | None = None,
    batch_axes: str | tuple[str, ...] | None = None,
) -> Watch:
    """Keeps statistics of the tensors inside a model, without any change to its code.

    The statistics are tallax state of the model: they are updated on the device in every training step, under every
    transformation, and `log(model)`, `tallax.collect` and `tallax.save` find them. Their names are paths with a role:
    `layers/0/mlp:output`, `layers/0/mlp/kernel:gradient`. The model is trained by the same operations as without a
    watch; only the last bit may differ, if XLA fuses them differently. In evaluation mode (`model.eval()`) nothing is
    counted.

    Args:
        model: The model. Call `watch` before the model is compiled, or expect one compilation more, and not on a model
            that was passed to a transformed function.
        optimizer: The `nnx.Optimizer`, whose `update(model, grads)` shows parameters, gradients and updates.
        sites: The modules to watch: a glob of paths, in which `*` is one part and `**` any number of parts; a module
            class; a predicate `(path, module) -> bool`; or a list of these.
        inputs: Whether to watch the arrays of floats among the arguments of a module, all of them together.
        outputs: Whether to watch the arrays of floats in the output of a module, all of them together.
        output_gradients: Whether to watch the gradients of the loss with respect to the outputs. The gradients have
            to be computed by `tallax.value_and_grad` or `tallax.grad`.
        parameters: Whether to watch the Params of the chosen modules, before each update.
        gradients: Whether to watch the gradients that `optimizer.update` gets.
        updates: Whether to watch by how much each update changes the parameters.
        method: The method or methods of the modules to watch.
        statistic: A function that makes a statistic, such as `tallax.statistics.Moments`; by default a summary. The
            gradients of outputs always have a summary.
        histograms: Whether to keep a `LogHistogram` as well, of everything but the gradients of outputs.
        every: The tensors are looked at in every n-th step. The steps are counted by each site.
        window: The summaries start again after this many steps; None if they are those of all steps.
        step: The number of steps before this one, from which sites count on. By default the value of the Counter
            called `step` in the model, if there is one.
        presets: Numbers with a name in the field, for modules of their own choice, such as
            `[tallax.watching.dead_units("layers/*/up"), tallax.watching.attention()]`.
        stacks: Globs of the modules that `nnx.vmap` made for `nnx.scan`, if it cannot be inferred from their layers.
        batch_axes: On a mesh, the axes along which batches are split. By default those whose names contain data,
            batch, fsdp, replica or dp, or else the first axis.

    Returns:
        A `Watch`, which reads the statistics, prints them as a table, and removes them.

    Raises:
        InvalidTypeError: `model` is not a module, another argument is of the wrong kind, or there is no optimizer to
            see parameters, gradients or updates.
        InvalidValueError: `sites` selects nothing, a predicate raises, no chosen module has the method, the model is
            watched already, or nothing is to be watched.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> watch = tallax.watch(model, sites=nnx.Linear)
        >>> y = model(jnp.ones((4, 2)))
        >>> watch.result()["layers/0:output"].size
        12
        >>> watch.remove()
    """
    asked = zip(_params.ROLES, (parameters, gradients, updates), strict=True)
    param_roles = [role for role, is_asked in asked if is_asked]
    needs_optimizer = bool(param_roles) or has_update_ratio(presets)
    _check(model, optimizer, statistic, every, window, needs_optimizer=needs_optimizer)
    roles = [role for role, is_asked in ((INPUT, inputs), (OUTPUT, outputs), (GRADIENT, output_gradients)) if is_asked]
    of_presets = list(presets_of(model, presets))
    if not roles and not param_roles and not of_presets:
        raise InvalidValueError(
            "watch", "there is nothing to watch.", got="outputs=False", fix="outputs=True, or updates=True"
        )
    chosen = chosen_modules(model, sites) if roles or param_roles else []
    if any(WATCHED in vars(each.module) for each in modules_of(model)) or base_of(optimizer) is not None:
        raise InvalidValueError(
            "watch",
            "the model or the optimizer is watched already.",
            got="a second watch",
            fix="watch.remove() first, or one watch for everything: sites=[...]",
        )
    methods = names_in("method", method, 'method="__call__"')
    check_methods(
        methods, [each for each in chosen if roles] + [each for preset, each, _ in of_presets if preset.calls]
    )
    for argument, value, example in (("stacks", stacks, "layers"), ("batch_axes", batch_axes, "data")):
        if value is not None:
            names_in(argument, value, f'{argument}="{example}"')
    devices, shapes = devices_of(model, batch_axes), stack_shapes(modules_of(model), stacks)
    first = _steps_so_far(model, step)
    maker = Maker(methods, statistic, histograms, every, window, devices, first, shapes)
    for name in functions_asked_for(model, sites):
        maker.unseen[name] = "a function, not a module: it has no state to keep"
    for each in chosen:
        maker.add_roles(each, roles)
        maker.add_param_roles(each, param_roles)
    for preset, each, make in of_presets:
        maker.add_preset(each, preset, make)
    maker.attach()
    if needs_optimizer:
        object.__setattr__(optimizer, "__class__", watched_optimizer_class(type(optimizer)))
    return Watch(model, optimizer if needs_optimizer else None, maker.unseen)


def _check(model: Any, optimizer: Any, statistic: Any, every: Any, window: Any, *, needs_optimizer: bool) -> None:
    if not isinstance(model, nnx.Module):
        raise InvalidTypeError("watch", "takes a model, an nnx.Module.", got=describe(model), fix="tallax.watch(model)")
    if optimizer is not None and not isinstance(optimizer, nnx.Optimizer):
        raise InvalidTypeError(
            "watch",
            "the second argument is the optimizer.",
            got=describe(optimizer),
            fix='tallax.watch(model, sites="layers/*") to choose modules',
        )
    if needs_optimizer and optimizer is None:
        raise InvalidTypeError(
            "watch",
            "parameters, gradients and updates are seen in optimizer.update, so it needs the optimizer.",
            got="no optimizer",
            fix="tallax.watch(model, optimizer, gradients=True)",
        )
    if statistic is not None and not callable(statistic):
        raise InvalidTypeError(
            "statistic",
            "takes a function that makes a statistic.",
            got=describe(statistic),
            fix="statistic=tallax.statistics.Moments, which is called once for each tensor",
        )
    for name, value in (("every", every), ("window", 1 if window is None else window)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise InvalidValueError(name, "takes an integer in [1, 2**31 - 1].", got=describe(value), fix=f"{name}=10")
    if window is not None and window % every:
        raise InvalidValueError(
            "window",
            "must be a multiple of every, since summaries start again in a step that is looked at.",
            got=f"window={window}, every={every}",
            fix=f"window={every * max(1, window // every)}",
        )


def _steps_so_far(model: Any, step: Any) -> int:
    if step is None:
        counters = [
            (len(path), node)
            for path, node in nnx.iter_graph(model)
            if isinstance(node, Counter) and path[-1:] == ("step",) and not node.shape
        ]
        shortest = min((length for length, _ in counters), default=0)
        found = [node for length, node in counters if length == shortest]
        return int(found[0]) if len(found) == 1 else 0
    if isinstance(step, bool) or not isinstance(step, int | np.integer | Counter) or int(step) < 0:
        raise InvalidValueError(
            "step", "takes a Counter, or an integer that is not negative.", got=describe(step), fix="step=model.step"
        )
    return int(step)


class Watch:
    """The sites of a watched model. `print(watch)` shows a table, the most unusual tensors first.

    The statistics belong to the model. `Watch(model)` finds those of a model that was cloned, or unpickled.

    Args:
        model: The model.
        optimizer: The optimizer, if it is watched.
    """

    def __init__(self, model: Any, optimizer: Any = None, _unseen: Mapping[str, str] | None = None):
        self._model, self._optimizer = model, optimizer
        self._is_first = _unseen is not None  # then the notes are those of all steps
        self._asked = {name: site for name, site, _ in self._entries()}
        self._unseen = dict(_unseen or {})

    def _entries(self) -> list[tuple[str, Site, str]]:
        """Returns the name, the site and the role of each statistic."""
        found = []
        for path, node in nnx.iter_graph(self._model):
            if isinstance(node, Site):
                found += [(path_name((*path, role)), node, role) for role in node.statistics]
        return found

    @property
    def sites(self) -> list[str]:
        """The names of the statistics."""
        return [name for name, _, _ in self._entries()]

    def result(self) -> dict[str, Any]:
        """Returns the result of each statistic by name: a `SummaryResult`, unless another `statistic` was asked for.

        Raises:
            TracedReadError: Inside a trace; `tallax.snapshot(model)` returns arrays there.
        """
        names = self.sites
        values = collect(self._model).result()
        return {name: values[name] for name in names}

    @property
    def unseen(self) -> dict[str, str]:
        """The sites that were asked for and not seen so far, each with the reason."""
        found = dict(self._unseen)
        entries = self._entries()
        values = self.result()
        now = {name for name, _, _ in entries}
        for name in self._asked:
            if name not in now:
                found[name] = "the module was replaced or removed after it was watched"
        for name, site, role in entries:
            notes = notes_of(site.watch, site.site, role.removesuffix(HISTOGRAM))
            if self._is_unseen(values[name], role, notes):
                found[name] = _reason(role, notes)
        return found

    def _is_unseen(self, result: Any, role: str, notes: frozenset[str]) -> bool:
        if isinstance(result, SummaryResult):
            return is_idle(result)
        if is_of_preset(result, role):
            return is_empty(result, role) and (":" not in role or notes != {"called"})
        # The result of another statistic does not show whether it has seen something.
        return not notes <= {"called"} or (self._is_first and not notes)

    def reset(self) -> None:
        """Sets all statistics back to the start. The sites' steps begin at 0 again."""
        for _, site, role in self._entries():
            site.statistics[role].reset()

    def remove(self) -> None:
        """Removes everything that `watch` added: the model is equal to one that was never watched."""
        for module in [each.module for each in modules_of(self._model)]:
            base = base_of(module)
            if base is not None:
                object.__setattr__(module, "__class__", base)
            if WATCHED in vars(module):
                delattr(module, WATCHED)
        base = base_of(self._optimizer)
        if base is not None:
            object.__setattr__(self._optimizer, "__class__", base)

    def __repr__(self) -> str:
        """Returns the table."""
        results = self.result()
        histograms = {
            name: bins
            for name, site, role in self._entries()
            if (bins := site.statistics[role]._bins(results[name])) is not None
        }
        return table(results, histograms, self.unseen, len(results))

    __str__ = __repr__


def _reason(role: str, notes: frozenset[str]) -> str:
    told = sorted(notes - {"called"})
    if told:
        return "; ".join(told)
    if role.partition(":")[2]:
        return "optimizer.update has not been called"
    if role == GRADIENT:
        return "no backward pass by tallax.value_and_grad or tallax.grad reached it"
    if "called" in notes:
        return "it was called on a copy whose state was thrown away, as by jax.jit without returning it"
    return "it was not called, or as Class.method(module, ...), which a watch does not see"
