# SPDX-License-Identifier: Apache-2.0
"""Group `logging`: loops that log two hundred counters or statistics every ten steps, and one that logs nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks import transformer
from benchmarks._timing import Case, Group

Loop = tuple[tuple[Any, ...], Any, tuple[Any, ...]]  # the objects, the step bound to them, and the batch
EVERY = 10  # steps
LONG, SHORT = 10, 500  # steps of a call, of which each is long or short


def group(number: int = 200, size: transformer.Size = transformer.USUAL) -> Group:
    """Returns the cases. A call is a number of steps, of which every tenth is logged; at its end all is written."""
    a_layer = -(-number // size.layers)
    large = f"transformer, {a_layer * size.layers} statistics"
    return Group(
        "logging",
        f"{LONG} or {SHORT} steps of a training loop, every {EVERY}th logged; what was logged is on disk at the end",
        f"{large}, no logging",
        [
            *_cases(large, lambda: _transformer(a_layer, size), LONG, limit=1.05),
            *_cases(f"0.4 ms MLP, {number} counters", lambda: _counters(number), SHORT),
        ],
        rounds_in_one=10,
    )


def _cases(what: str, make: Callable[[], Loop], steps: int, limit: float | None = None) -> Iterator[Case]:
    none = f"{what}, no logging"
    options: dict[str, Any] = {"wait": jax.block_until_ready, "reference": none}
    yield Case(name=none, make=lambda: _silent(make(), steps), **options)
    yield Case(
        name=f"{what}, Logger to JSONL and TensorBoard",
        make=lambda: _logged(make(), steps),
        limit=limit,
        needs="tensorboardX",
        **options,
    )
    yield Case(name=f"{what}, Logger to JSONL", make=lambda: _logged(make(), steps, tensorboard=False), **options)
    yield Case(
        name=f"{what}, float() of each and add_scalar",
        make=lambda: _naive(make(), steps),
        needs="tensorboardX",
        **options,
    )


def _transformer(number: int, size: transformer.Size) -> Loop:
    things, batch = transformer.model_and_batch(size, number, per_token=True)
    return things, tallax.compile_step(transformer.train_step, *things), batch


def _counters(number: int) -> Loop:
    things = ref.objects(lambda: ref.Counters(number))
    return things, tallax.compile_step(ref.train_step, *things), ref.batch(number)


def _silent(loop: Loop, steps: int) -> Callable[[], Any]:
    _, step, batch = loop

    def run() -> Any:
        for _ in range(steps):
            loss = step(*batch)
        return loss

    return run


def _logged(loop: Loop, steps: int, *, tensorboard: bool = True) -> Callable[[], Any]:
    _, step, batch = loop
    folder = tempfile.mkdtemp()
    sinks: list[Any] = [tallax.sinks.Jsonl(folder)]
    if tensorboard:
        sinks.append(tallax.sinks.TensorBoard(folder))
    log = tallax.Logger(*sinks, every=EVERY)
    done = 0

    def run() -> Any:
        nonlocal done
        for number in range(done, done + steps):
            loss = step(*batch)
            log(step, loss=loss, step=number)
        done += steps
        log.flush()
        return loss

    return run


def _naive(loop: Loop, steps: int) -> Callable[[], Any]:
    """Reads each variable or statistic by itself, through the step that owns it, as many loops do for each metric."""
    from tensorboardX import SummaryWriter

    things, step, batch = loop
    writer = SummaryWriter(tempfile.mkdtemp())
    chosen = [
        ("/".join(map(str, path)), node)
        for thing in things
        for path, node in nnx.iter_graph(thing)
        if isinstance(node, tallax.statistics.Statistic) or (isinstance(node, tallax.Counter) and not node.shape)
    ]
    done = 0

    def run() -> Any:
        nonlocal done
        for number in range(done, done + steps):
            loss = step(*batch)
            if number % EVERY == 0:
                writer.add_scalar("loss", float(loss), number)
                for name, thing in chosen:
                    writer.add_scalar(name, _number(thing), number)
        done += steps
        return loss

    return run


def _number(thing: Any) -> float:
    """Returns one number that a loop would log for a variable or statistic."""
    match thing:
        case tallax.statistics.Rate():
            return float(thing.compute().rate)
        case tallax.statistics.Histogram():
            return float(thing.compute().counts.sum())
        case _:
            return float(thing)
