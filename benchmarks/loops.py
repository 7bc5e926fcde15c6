# SPDX-License-Identifier: Apache-2.0
"""Group `loops`: training loops that look at every step, beside those that never look."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax

import tallax
from benchmarks import _reference_step as ref
from benchmarks import transformer
from benchmarks._timing import Case, Group

Bound = tuple[Any, tuple[Any, ...]]  # a compiled step, and the batch to call it with


def group(few: int = 12, many: int = 1000, size: transformer.Size = transformer.USUAL) -> Group:
    """Returns the cases. Loops run ahead of the device, up to where they wait for what they look at."""
    return Group(
        "loops",
        "a turn of a training loop, or several; the values of a step are read after the next has started",
        _name(f"{few} counters", "never looks"),
        [
            *_cases(f"{few} counters", lambda: _counters(few), over_loss=1.05),
            *_cases(f"{many} counters", lambda: _counters(many)),
            *_cases(
                f"transformer, {few} statistics a layer",
                lambda: _transformer(few, size),
                turns=4,
                limit=1.05,
                over_loss=1.05,
            ),
        ],
        rounds_in_one=5,
    )


def _name(what: str, how: str) -> str:
    return f"{what}, {how}"


def _cases(
    what: str, bound: Callable[[], Bound], turns: int = 1, limit: float | None = None, over_loss: float | None = None
) -> Iterator[Case]:
    """Yields the cases of one step; where it is longer than a round, a call is several turns, or none would overlap.

    A loop that waits for nothing runs ahead of the device without end, as no training does. On two cores, and with a
    step of 0.4 ms, to wait for anything costs more than to collect: so the loop that reads its loss is there, too.
    """
    never, loss = _name(what, "never looks"), _name(what, "the loss")
    options: dict[str, Any] = {"wait": jax.block_until_ready, "reference": never}
    yield Case(name=never, make=lambda: _repeated(turns, _blind(*bound())), **options)
    yield Case(name=loss, make=lambda: _repeated(turns, _late(*bound(), lambda step, loss: loss, float)), **options)
    yield Case(
        name=_name(what, "all state"),
        make=lambda: _repeated(turns, _late(*bound(), lambda step, loss: step.collect(), tallax.Reading.result)),
        limit=limit,
        versus={loss: over_loss},
        **options,
    )


def _counters(number: int) -> Bound:
    step = tallax.compile_step(ref.train_step, *ref.objects(lambda: ref.Counters(number)))
    return step, ref.batch(number)


def _transformer(number: int, size: transformer.Size) -> Bound:
    things, batch = transformer.model_and_batch(size, number, per_token=True)
    return tallax.compile_step(transformer.train_step, *things), batch


def _repeated(turns: int, turn: Callable[[], Any]) -> Callable[[], Any]:
    return turn if turns == 1 else lambda: [turn() for _ in range(turns)]


def _blind(step: Any, batch: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: step(*batch)


def _late(
    step: Any, batch: tuple[Any, ...], take: Callable[[Any, Any], Any], look: Callable[[Any], Any]
) -> Callable[[], Any]:
    """Returns a turn that takes something from each step, and looks at what was taken from the one before."""
    taken: collections.deque[Any] = collections.deque()

    def turn() -> Any:
        loss = step(*batch)
        taken.append(take(step, loss))
        if len(taken) > 1:
            look(taken.popleft())
        return loss

    return turn
