# SPDX-License-Identifier: Apache-2.0
"""`Maker`: makes the sites of a watch with their statistics, and attaches them to the modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._walk import WATCHED
from tallax.statistics import LogHistogram, Statistic
from tallax.watching import _params
from tallax.watching._notes import new_number
from tallax.watching._placing import Devices, place, row_axis, spec_of
from tallax.watching._presets import Preset
from tallax.watching._select import Found
from tallax.watching._site import GRADIENT, HISTOGRAM, Site
from tallax.watching._step_statistic import StepStatistic
from tallax.watching._summary import Summary
from tallax.watching._watched_classes import is_pytree, watched_class

Factory = Callable[[], Statistic]


class Maker:
    """The sites of a watch while they are made.

    Args:
        methods: The methods to watch.
        statistic: Makes the statistics of roles; None for summaries.
        histograms: Whether each role has a histogram as well.
        every: See `tallax.watch`.
        window: See `tallax.watch`.
        devices: The mesh of the model, or None.
        first: The number of steps so far.
        stacks: The shape of the stack that each module is, by its id.

    Attributes:
        unseen: The reasons why requested sites have no statistic.
    """

    def __init__(
        self,
        methods: tuple[str, ...],
        statistic: Factory | None,
        histograms: bool,
        every: int,
        window: int | None,
        devices: Devices | None,
        first: int,
        stacks: Mapping[int, tuple[int, ...]],
    ):
        self.methods, self.statistic, self.histograms, self.first = methods, statistic, histograms, first
        self.devices, self.stacks, self.unseen = devices, stacks, dict[str, str]()
        rows = None if devices is None or devices.rows == 1 else devices.rows
        self._options: dict[str, Any] = {"every": every, "window": window, "rows": rows}
        self._number, self._sites = new_number(), dict[int, tuple[Found, Site]]()
        self._called: set[int] = set()  # modules whose methods are watched
        self._functions: dict[int, tuple[str, ...]] = {}  # attributes with functions that are watched
        self._owned: set[tuple[int, str]] = set()  # Params of several modules, and their roles

    def add_roles(self, each: Found, roles: Sequence[str]) -> None:
        """Adds statistics of the inputs and outputs of a module."""
        if roles and not self._methods_of(each.module):
            self.unseen[each.name] = f"{type(each.module).__name__} has no method {' or '.join(self.methods)}"
            return
        for role in roles:
            self._add(each, role, self._statistics(role))
            self._called.add(id(each.module))

    def add_param_roles(self, each: Found, roles: Sequence[str]) -> None:
        """Adds statistics of the Params that a module owns."""
        for name, placement in self._params(each, roles):
            self._add(each, name, self._statistics(name, placement))

    def add_preset(self, each: Found, preset: Preset, make: Callable[..., StepStatistic] | str) -> None:
        """Adds the statistics of a preset, or the reason why a module cannot be seen."""
        if isinstance(make, str):
            self.unseen[f"{each.name}:{preset.name}"] = make
        elif preset.name == _params.UPDATE_RATIO:
            for name, placement in self._params(each, [preset.name]):
                self._add(each, name, {name: make(**self._options, **placement)})
        elif preset.function is None and not self._methods_of(each.module):
            self.unseen[f"{each.name}:{preset.name}"] = f"it has no method {' or '.join(self.methods)}"
        else:
            self._add(each, preset.name, {preset.name: make(**self._options)})
            if preset.function is None:
                self._called.add(id(each.module))
            else:
                self._functions[id(each.module)] = (preset.function,)

    def attach(self) -> None:
        """Gives the modules their sites, and the classes that update them."""
        for each, site in self._sites.values():
            if is_pytree(each.module):
                setattr(each.module, WATCHED, site)
            else:
                object.__setattr__(each.module, WATCHED, site)
            methods = self._methods_of(each.module) if id(each.module) in self._called else ()
            kind = watched_class(type(each.module), methods, self._functions.get(id(each.module), ()))
            object.__setattr__(each.module, "__class__", kind)

    def _methods_of(self, module: Any) -> tuple[str, ...]:
        return tuple(name for name in self.methods if callable(getattr(type(module), name, None)))

    def _params(self, each: Found, roles: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Returns the names of the roles of the Params of a module, with their axis of rows and placement on a mesh."""
        found, depth = [], len(self.stacks[id(each.module)])
        for inner, variable in _params.params_below(each.module):
            for role in roles:
                if (id(variable), role) not in self._owned:
                    self._owned.add((id(variable), role))
                    name = f"{'.'.join(map(str, inner))}:{role}"
                    axis = row_axis(variable, self.devices, depth)
                    found.append((name, {"axis": axis, "spec": spec_of(variable)}))
        return found

    def _statistics(self, role: str, placement: Mapping[str, Any] | None = None) -> dict[str, Any]:
        make = None if role == GRADIENT else self.statistic
        made = Summary(**self._options, **(placement or {})) if make is None else self._made_by(make)
        return {role: made, **({role + HISTOGRAM: LogHistogram(0.34)} if self.histograms and role != GRADIENT else {})}

    def _made_by(self, make: Factory) -> Statistic:
        try:
            made, got = make(), None
        except TypeError as error:  # it needs arguments
            made, got = None, f"TypeError: {error}"
        if not isinstance(made, Statistic):
            raise InvalidTypeError(
                "statistic",
                "takes a function that makes a statistic.",
                got=got or describe(made),
                fix="statistic=tallax.statistics.Moments, or lambda: tallax.statistics.Extrema()",
            )
        if any(made is other for _, site in self._sites.values() for other in site.statistics.values()):
            raise InvalidValueError(
                "statistic",
                "takes a function that makes a new statistic at each call.",
                got=f"the same {type(made).__name__} twice",
                fix=f"statistic=lambda: tallax.statistics.{type(made).__name__}(...)",
            )
        return made

    def _add(self, each: Found, role: str, statistics: Mapping[str, Statistic]) -> None:
        made = Site(each.name, self._number, self.methods, is_split=self.devices is not None)
        _, site = self._sites.setdefault(id(each.module), (each, made))
        for name, statistic in statistics.items():
            if isinstance(statistic, Summary | StepStatistic):
                statistic.start_at(self.first)
            place(statistic, self.stacks[id(each.module)], self.devices)
            setattr(site, name, statistic)
