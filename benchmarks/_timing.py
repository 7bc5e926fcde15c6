# SPDX-License-Identifier: Apache-2.0
"""The harness: cases timed side by side, so that a slow moment of the machine falls on all of them alike.

A run is many short rounds. In each round every case runs its inner loop once, in an order shuffled anew, so that none
always follows the same neighbour. A ratio is taken within each round, and its median over the rounds is the figure:
what slows a whole round down cancels, and what hits one case of a round is an outlier that a median ignores. Ratios of
medians, or of minima, have neither property on a shared machine.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time.

    Attributes:
        name: what the table calls it.
        make: sets it up, untimed, and returns the operation to time.
        fresh: makes, untimed, the argument of each single call of the operation; without it the operation takes none.
        wait: called, within the time, on what the last call of a round returned: `jax.block_until_ready`.
        reference: the case that `ratio` and `limit` refer to; None for the group's own.
        versus: further cases to report ratios to, each with the ratio promised not to be exceeded, or None.
        limit: the ratio that an issue promises not to exceed.
        limit_seconds: likewise the median time of a call.
        needs: a module without which the case is left out.
        done: called, untimed, when all is measured.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    fresh: Callable[[], Any] | None = None
    wait: Callable[[Any], Any] | None = None
    reference: str | None = None
    versus: Mapping[str, float | None] = field(default_factory=dict)
    limit: float | None = None
    limit_seconds: float | None = None
    needs: str | None = None
    done: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Group:
    """Cases that are timed together, and the one that ratios refer to unless a case says otherwise.

    Attributes:
        name: also that of the JSON file.
        title: what the table says of it.
        reference: the case that ratios refer to.
        cases: the cases.
        one_call: whether a round is one call of each case, waited for, instead of an inner loop. In a loop, calls that
            do not depend on each other overlap, and arrays stay in the caches, as they do not between training steps.
        warm_up: whether each case runs once before it is timed; set-ups that are slow see to it themselves.
        rounds_in_one: how many rounds of another group take as long as one of these; there are fewer accordingly.
        draw: makes a figure of the results, for `--plot`.

    Raises:
        ValueError: two cases share a name, or a ratio refers to a case that is not there.
    """

    name: str
    title: str
    reference: str
    cases: list[Case]
    one_call: bool = False
    warm_up: bool = True
    rounds_in_one: int = 1
    draw: Callable[[list[Result]], Figure] | None = None

    def __post_init__(self):
        names = [case.name for case in self.cases]
        wanted = {self.reference, *(name for case in self.cases for name in (case.reference, *case.versus) if name)}
        if len(set(names)) < len(names) or not wanted <= set(names):
            raise ValueError(f"group {self.name}: cases {names}, of which ratios need {sorted(wanted)}, each once")


@dataclass(frozen=True)
class Figures:
    """A median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: list[float]) -> Figures:
        """Returns the figures of samples in any order."""
        if len(samples) == 1:
            return cls(*samples * 3)
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The measurements of one case.

    Attributes:
        case: the case.
        reference: the name of the case that `ratio` refers to.
        seconds: the time of one call; None where the case was left out.
        calls: how often the operation runs within a round.
        rounds: how many rounds there were.
        ratios: this case's time over that of others, by their names; a case that was left out has none.
    """

    case: Case
    reference: str
    seconds: Figures | None = None
    calls: int = 0
    rounds: int = 0
    ratios: dict[str, Figures] = field(default_factory=dict)

    @property
    def ratio(self) -> Figures | None:
        """The ratio to the reference, where both were measured."""
        return self.ratios.get(self.reference)

    @property
    def met(self) -> bool | None:
        """Whether every limit is kept; None where there is none, or nothing to compare."""
        verdicts = [self.meets(name) for name, limit in self.limits.items() if limit is not None]
        if self.case.limit_seconds is not None:
            verdicts.append(self.in_time)
        return None if not verdicts or None in verdicts else all(verdicts)

    @property
    def in_time(self) -> bool | None:
        """Whether a call takes no longer than was promised; None where nothing was, or nothing measured."""
        if self.case.limit_seconds is None or self.seconds is None:
            return None
        return self.seconds.median <= self.case.limit_seconds

    @property
    def limits(self) -> dict[str, float | None]:
        """The limits of the ratios to other cases, by their names."""
        return {self.reference: self.case.limit, **self.case.versus}

    def meets(self, name: str) -> bool | None:
        """Whether the limit of the ratio to one case is kept; None where there is none, or nothing to compare."""
        limit = self.limits[name]
        if limit is None or name not in self.ratios:
            return None
        return self.ratios[name].median <= limit


def measure(
    group: Group, *, rounds: int, round_seconds: float = 3e-3, clock: Callable[[], float] = time.perf_counter
) -> list[Result]:
    """Times the cases of a group and returns one result for each, in order.

    Args:
        group: the cases; those that need a module which is not installed are left out.
        rounds: how often each case is timed, in a group of the usual length.
        round_seconds: about how long one case runs in one round. Long against the clock's resolution and the first
            call's cold caches, short against the moments in which a shared machine is busy elsewhere.
        clock: returns seconds.
    """
    with _quiet():
        seconds = 0.0 if group.one_call else round_seconds
        loops = [_Loop(case, seconds, clock, group.warm_up) for case in group.cases if _available(case)]
        samples: dict[str, list[float]] = {loop.case.name: [] for loop in loops}
        order = random.Random(0)
        for _ in range(max(1, rounds // group.rounds_in_one)):
            order.shuffle(loops)
            for loop in loops:
                samples[loop.case.name].append(loop.run())
            gc.collect()
        for loop in loops:
            if loop.case.done is not None:
                loop.case.done()
    calls = {loop.case.name: loop.calls for loop in loops}
    return [_result(case, group, samples, calls) for case in group.cases]


class _Loop:
    """A case that is set up, warm, and repeated as often as a round takes."""

    def __init__(self, case: Case, round_seconds: float, clock: Callable[[], float], warm_up: bool):
        self.case, self.clock = case, clock
        self.operation = case.make()
        self.calls = 1
        if warm_up:
            self.run()  # compiles, and fills caches
        if round_seconds:
            self._calibrate(round_seconds)

    def run(self) -> float:
        """Returns the seconds that one call took, on average over one inner loop."""
        operation, fresh, wait, clock = self.operation, self.case.fresh, self.case.wait, self.clock
        result = None
        if fresh is None:
            repeats = itertools.repeat(None, self.calls)
            start = clock()
            for _ in repeats:
                result = operation()
        else:
            arguments = [fresh() for _ in range(self.calls)]
            start = clock()
            for argument in arguments:
                result = operation(argument)
        if wait is not None:
            wait(result)
        return (clock() - start) / self.calls

    def _calibrate(self, round_seconds: float) -> None:
        # The fastest of three, since a hiccup here would leave the case with loops too short to time; and in steps,
        # since a short loop overestimates what a call takes, or meets the grain of the clock.
        while (seconds := self.calls * min(self.run() for _ in range(3))) < round_seconds / 2:
            self.calls *= max(2, min(10, int(round_seconds / max(seconds, 1e-9))))
        self.calls = max(1, round(self.calls * round_seconds / seconds))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the garbage collector out of the times, and silences warnings, whose printing is not what is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is imported by now need not be searched between the rounds
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _available(case: Case) -> bool:
    return case.needs is None or importlib.util.find_spec(case.needs) is not None


def _result(case: Case, group: Group, samples: dict[str, list[float]], calls: dict[str, int]) -> Result:
    reference = case.reference or group.reference
    own = samples.get(case.name)
    if not own:
        return Result(case=case, reference=reference)
    ratios = {
        name: Figures.of([mine / theirs for mine, theirs in zip(own, samples[name], strict=True)])
        for name in (reference, *case.versus)
        if name in samples
    }
    return Result(
        case=case,
        reference=reference,
        seconds=Figures.of(own),
        calls=calls[case.name],
        rounds=len(own),
        ratios=ratios,
    )
