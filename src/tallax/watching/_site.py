# SPDX-License-Identifier: Apache-2.0
"""`Site`: the state of one watched module, in a single attribute of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._backward_observers import BackwardObserver
from tallax._errors import InvalidTypeError, InvalidValueError, TraceError
from tallax._mesh_axes import mapped_axes, marked, varying_axes
from tallax.statistics import Statistic
from tallax.watching._lanes import with_numbers
from tallax.watching._many_tensors import Collector
from tallax.watching._notes import note, notes_of
from tallax.watching._reduction import Layout, Numbers, PackedNumbers, zeros_on_rows
from tallax.watching._step_statistic import StepStatistic, take_together
from tallax.watching._summary import Summary
from tallax.watching._summary_updates import Update, update_together
from tallax.watching._tap import TOKEN, Uses, tap

INPUT, OUTPUT, GRADIENT = "input", "output", "output_gradient"
HISTOGRAM = "_histogram"


class Site(BackwardObserver):
    """The statistics of a watched module: those of its calls by role, and those of its Params by name and role.

    An evaluation is not counted: `model.eval()` sets `deterministic` here as in every statistic.

    Args:
        name: The path of the module when it was watched.
        watch: The number of the watch, under which notes are kept.
        methods: The methods that are watched.
        is_split: Whether the model is on a mesh, so that its tensors may be split over devices.
    """

    def __init__(self, name: str, watch: int, methods: tuple[str, ...], *, is_split: bool):
        super().__init__()
        self.site, self.watch, self.methods, self.is_split = name, watch, methods, is_split

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The statistics by role: `output`, or for a Param `kernel:gradient`."""
        return {name: value for name, value in sorted(vars(self).items()) if isinstance(value, Statistic)}

    # --- the forward pass ---------------------------------------------------------------------------------------------

    def observe(self, role: str, value: Any) -> None:
        """Updates the statistics of a role with all arrays of floats in a value."""
        statistics = self.statistics
        chosen = [statistics[name] for name in (role, role + HISTOGRAM) if name in statistics]
        if not chosen or self.deterministic:
            return
        note(self.watch, self.site, role, "called")
        leaves = list(floats_in(value))
        for statistic in chosen:
            problem = _problem(statistic) if leaves else "no arrays of floating-point numbers"
            if problem:
                note(self.watch, self.site, role, problem)
            elif isinstance(statistic, Summary):
                self._summarize(statistic, role, leaves)
            else:
                for leaf in leaves:
                    self.update_or_note(statistic, role, leaf)

    def update_or_note(self, statistic: Statistic, role: str, value: Any) -> None:
        """Updates a statistic, or notes why it does not take a value, because the model must train on."""
        try:
            statistic.update(value)
        except (InvalidTypeError, InvalidValueError) as error:
            rule, got, *_ = *str(error).splitlines(), ""
            got = " ".join(got.split()).removesuffix(" (traced)")
            note(self.watch, self.site, role, f"{rule.partition(': ')[2].rstrip('.')}; {got}")

    def _summarize(self, summary: Summary, role: str, leaves: list[Any]) -> None:
        """Updates a summary; in a step of `value_and_grad` only the numbers of the step, which `absorb` adds to it."""
        variable = vars(self).get(_step_of(role))
        if variable is None:
            summary.observe(leaves)
            return
        step = variable.get_raw_value()
        start = next((each for each in self._beginnings(role) if each.array is step), None)
        if start is None:  # within a transformation, or not the first use
            variable.set_raw_value(summary.add_to_step(step, summary.due_in(step), leaves))
            return
        collector = start.forward
        if collector.is_skipped:
            return
        if len(leaves) == 1 and start.owner not in collector.owners and summary.is_direct(step, leaves[0]):
            x = jax.lax.stop_gradient(jnp.asarray(leaves[0]))
            collector.add(start.owner, x, Layout(summary.rows, summary.axis), step, known_as=leaves[0])
        else:
            variable.set_raw_value(summary.add_to_step(step, collector.due, leaves))

    def observe_presets(self, source: str, leaves: Sequence[Any]) -> None:
        """Updates the statistics of presets with a source; in a step of `value_and_grad`, only the numbers of the step.

        Args:
            source: `output`, or `attention` for the arguments of an attention function.
            leaves: The arrays of an output, or the positional and the named arguments.
        """
        for role, statistic in self._presets.items():
            if statistic.source != source or self.deterministic:
                continue
            note(self.watch, self.site, role, "called")
            found = _problem(statistic) or statistic.chosen(leaves)
            if isinstance(found, str):
                note(self.watch, self.site, role, found)
                continue
            variable = vars(self).get(_step_of(role))
            step = statistic.no_step() if variable is None else variable.get_raw_value()
            for arrays in found:
                step = statistic.add_to_step(step, arrays)
            if variable is None:
                take_together([statistic], [step])
            else:
                variable.set_raw_value(step)

    def attend(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls an attention function, and looks at its arguments."""
        self.observe_presets("attention", (args, kwargs))
        return function(*args, **kwargs)

    @property
    def _presets(self) -> dict[str, StepStatistic]:
        """The statistics of presets that the forward pass updates."""
        return {name: x for name, x in self.statistics.items() if isinstance(x, StepStatistic) and ":" not in name}

    @property
    def _stepped(self) -> dict[str, Summary | StepStatistic]:
        """The statistics whose numbers are collected during a step."""
        summaries = {role: vars(self).get(role) for role in (INPUT, OUTPUT)}
        return {role: x for role, x in summaries.items() if isinstance(x, Summary)} | self._presets

    @property
    def _summaries(self) -> list[Summary]:
        """The summaries that `absorb` updates."""
        found = [x for x in self._stepped.values() if isinstance(x, Summary)]
        return found if self._gradient is None else [*found, self._gradient]

    def _beginnings(self, role: str) -> list[_Beginning]:
        return _beginnings.setdefault((self.watch, self.site, role), [])

    # --- the backward pass --------------------------------------------------------------------------------------------

    @property
    def _gradient(self) -> Summary | None:
        return vars(self).get(GRADIENT)

    def with_tap(self, value: Any) -> Any:
        """Returns a value whose arrays of floats report their gradients, if there is a token."""
        summary = self._gradient
        if summary is None or self.deterministic:
            return value
        note(self.watch, self.site, GRADIENT, "called")
        variable = getattr(self, "token_variable", None)
        if variable is None:
            return value
        token = variable.get_raw_value()
        if token.ndim > (1 if summary.rows is None else 2):
            note(self.watch, self.site, GRADIENT, _NOT_MAPPED)
            return value
        beginnings = self._beginnings(GRADIENT)
        start = next((each for each in beginnings if each.array is token), None)
        if start is not None and start.backward.is_skipped:
            return value
        layout = Layout(summary.rows, summary.axis, kept=summary.words._replica_axes)
        if start is not None:
            due = start.backward.due
        else:  # within a transformation, the backward rule reads it from the token
            due = token if summary.has_due_lane else summary.due()
        due = None if due is None else jnp.asarray(due)
        uses = Uses(None, None) if start is None or start.uses is None else start.uses

        def with_tap(leaf: Any) -> Any:
            if not (_is_floats(leaf) and isinstance(leaf, jax.Array)):
                return leaf
            uses.count += 1
            # A leaf of another trace, as inside `vmap`, may stand for many.
            if start is None or type(leaf) is not type(token):
                for each in (uses, *(each.uses for each in beginnings if each.uses is not None)):
                    each.is_direct = False
                note(self.watch, self.site, _WITHIN, "called")
            tapped = tap(leaf, token, due, layout, uses)
            if start is not None:
                start.forward.rename(leaf, tapped)
            return tapped

        return jax.tree.map(with_tap, value, is_leaf=_is_node)

    def token(self) -> jax.Array | None:
        """Returns the token of the gradient of the output; an empty one if this is not watched."""
        stepped = list(self._stepped.values())
        if self.deterministic or not (stepped or self._gradient):
            return None
        if self._gradient is None:
            return jnp.zeros((*stepped[0].stack, 0), jnp.float32)
        words = self._gradient.words.get_raw_value()
        token = zeros_on_rows((*words.shape[:-1], TOKEN), jnp.float32, words)
        # The cotangent of a token that is the same on all replicas would be summed over them.
        return marked(token, self._gradient.words._replica_axes)

    @classmethod
    def attach(cls, observers: Sequence[Site], tokens: Sequence[jax.Array]) -> None:
        """Makes the tokens available to `with_tap`, and collects the numbers of the step."""
        collectors: dict[int, tuple[Collector, Collector]] = {}
        for watch, sites in _by_watch(observers).items():
            first = next((x for site in sites for x in site._summaries), None)
            due = None if first is None else first.due()
            is_split = any(site.is_split for site in sites)
            collectors[watch] = Collector(due, is_split=is_split), Collector(due, is_split=is_split)
        for number, (site, token) in enumerate(zip(observers, tokens, strict=True)):
            site._attach(number, token, *collectors[site.watch])

    def _attach(self, number: int, token: jax.Array, forward: Collector, backward: Collector) -> None:
        # Variables, so that the transformations within the model thread them as they thread all state.
        if self._gradient is not None:
            token = self._gradient.with_due(token, backward.due)
            self.token_variable = nnx.Variable(token)
            # If an inner `jit` was traced before, JAX does not run its function again, so that use would not be seen.
            is_direct = not notes_of(self.watch, self.site, _WITHIN)
            owner = number, GRADIENT
            self._begin(_Beginning(self, owner, token, forward, backward, Uses(owner, backward, is_direct=is_direct)))
        for role, statistic in self._stepped.items():
            step = statistic.no_step(forward.due)
            self._begin(_Beginning(self, (number, role), step, forward, backward, None))
            setattr(self, _step_of(role), nnx.Variable(step))

    def _begin(self, beginning: _Beginning) -> None:
        beginnings = self._beginnings(beginning.owner[1])
        del beginnings[:-_NESTED]  # those of steps that raised
        beginnings.append(beginning)

    def _end(self, role: str) -> _Beginning:
        beginnings = self._beginnings(role)
        place = max(k for k, each in enumerate(beginnings) if each.site is self)
        return beginnings.pop(place)

    def detach(self) -> Any:
        """Removes what `attach` added, and returns the numbers of the step by role, and the collected ones."""
        steps: dict[str, jax.Array] = {}
        groups: list[_Group] = []
        for role in self._stepped:
            step, start = vars(self)[_step_of(role)].get_raw_value(), self._end(role)
            delattr(self, _step_of(role))
            # The first site of all returns those of all.
            groups += [_Group(tuple(owners), numbers) for owners, numbers in start.forward.finish()]
            if step is not start.array or start.owner not in start.forward.owners:
                steps[role] = step
        uses = None
        if self._gradient is not None:
            del self.token_variable
            uses = self._end(GRADIENT).uses
        return steps, groups, uses

    @classmethod
    def absorb(cls, observers: Sequence[Site], cotangents: Sequence[jax.Array], seen: Sequence[Any]) -> None:
        """Updates the statistics with the numbers of the step, and with those of its gradients."""
        presets: list[tuple[StepStatistic, jax.Array]] = []
        for watch in _by_watch(observers):
            groups: list[_Group] = []
            alone: dict[Any, Any] = {}
            for number, (site, cotangent, (steps, some, uses)) in enumerate(
                zip(observers, cotangents, seen, strict=True)
            ):
                if site.watch != watch:
                    continue
                groups += some
                for role, step in steps.items():
                    statistic = vars(site)[role]
                    if isinstance(statistic, Summary):
                        alone[number, role] = step
                    elif site._is_writable(role):
                        presets.append((statistic, step))
                if uses is not None:
                    groups += [_Group(tuple(owners), numbers) for owners, numbers in uses.collector.finish()]
                    if uses.owner not in uses.collector.owners:
                        alone[uses.owner] = cotangent
            # All together, as each group of summaries takes several kernels.
            update_together(list(_updates(observers, groups, alone)))
        if presets:
            take_together(*zip(*presets, strict=True))

    def _is_writable(self, role: str) -> bool:
        """Returns whether the statistic of a role can be updated, and notes why if it cannot."""
        problem = unwritable(vars(self)[role])
        if problem is not None:
            note(self.watch, self.site, role, problem)
        return problem is None


def _updates(sites: Sequence[Site], groups: Sequence[_Group], alone: dict[Any, Any]) -> Iterator[Update]:
    """Yields the updates of all summaries that can be written here.

    Args:
        sites: The sites.
        groups: The numbers of tensors that sites saw directly.
        alone: The lanes of other tensors, and cotangents, by the number of the site and the role. A module that is used
            within a transformation and outside of it has both.
    """
    for group in groups:
        if all(owner not in alone and sites[owner[0]]._is_writable(owner[1]) for owner in group.owners):
            yield Update([vars(sites[number])[role] for number, role in group.owners], group.numbers)
            continue
        for k, owner in enumerate(group.owners):
            numbers = group.numbers if len(group.owners) == 1 else group.numbers[k]
            alone[owner] = with_numbers(alone[owner], numbers) if owner in alone else numbers
    for (number, role), value in alone.items():
        if sites[number]._is_writable(role):
            yield Update([vars(sites[number])[role]], value)


def _by_watch(sites: Sequence[Site]) -> dict[int, list[Site]]:
    found: dict[int, list[Site]] = {}
    for site in sites:
        found.setdefault(site.watch, []).append(site)
    return found


def _step_of(role: str) -> str:
    """Returns the attribute with the numbers of a role during a step."""
    return f"{role} of the step"


class _Beginning(NamedTuple):
    """A role of a site at the beginning of a step.

    Attributes:
        site: The site.
        owner: The number of the site, and the role.
        array: The lanes of the step, or the token.
        forward: Collects the tensors of the forward pass.
        backward: Collects the gradients.
        uses: The uses of the token; None for another role.
    """

    site: Site
    owner: tuple[int, str]
    array: jax.Array
    forward: Collector
    backward: Collector
    uses: Uses | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Group:
    """The numbers of the tensors of some owners, one after the other."""

    owners: tuple[tuple[int, str], ...] = field(metadata={"static": True})
    numbers: Numbers | PackedNumbers


# The beginnings by watch, site and role; several if copies of a model are trained together. If the Variable of the step
# still has the very array of one, no transformation lies between, and nothing was observed so far. They are kept here,
# because an attribute of the site would be part of the graph of the model.
_beginnings: dict[tuple[int, str, str], list[_Beginning]] = {}
_NESTED = 8  # beginnings of a role that are kept

_WITHIN = f"{GRADIENT}, within a transformation"  # the role under which such a use is noted
_CLOSED_OVER = "a transformed function closes over the module, so its state cannot be written; pass it as an argument"
_NOT_MAPPED = (
    "the whole stack of modules was used at once; map over its state like over its Params: "
    "in_axes=0 in nnx.scan or nnx.vmap, or nnx.StateAxes({..., tallax.Counter: 0, tallax.Buffer: 0})"
)


def _problem(statistic: Statistic) -> str | None:
    """Returns the reason why a statistic cannot be updated here; None if it can."""
    if isinstance(statistic, Summary | StepStatistic) and statistic.stack:
        return _NOT_MAPPED
    axes = mapped_axes()
    if axes and not varying_axes(jax.lax.axis_index(axes[0])):
        return "a shard_map with check_vma=False, inside which it is unknown how replicas combine"
    return unwritable(statistic)


def unwritable(statistic: Statistic) -> str | None:
    """Returns the reason why the state of a statistic cannot be written here; None if it can."""
    for variable in statistic.variables.values():
        raw = variable.get_raw_value()
        try:
            variable.set_raw_value(raw)  # changes nothing, and raises where a write would
        except TraceError:
            return _CLOSED_OVER
    return None


def floats_in(value: Any) -> Iterator[Any]:
    """Yields the arrays of floats in a value, but not those of modules and Variables."""
    for leaf in jax.tree.leaves(value, is_leaf=_is_node):
        if not _is_node(leaf) and _is_floats(leaf):
            yield leaf


def arrays_in(value: Any) -> list[Any]:
    """Returns the arrays in a value, but not those of modules and Variables."""
    return [x for x in jax.tree.leaves(value, is_leaf=_is_node) if not _is_node(x)]


def _is_node(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable | nnx.State)


def _is_floats(x: Any) -> bool:
    return (
        (isinstance(x, jax.Array | np.ndarray) or is_traced(x))
        and jnp.issubdtype(x.dtype, jnp.inexact)
        and bool(np.size(x))
    )
