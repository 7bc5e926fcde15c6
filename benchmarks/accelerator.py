# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.accelerator [GROUP ...] [--output FILE]`: costs on the device that JAX finds, in five minutes.

It needs jax, flax and this source tree, from whose root it is run; tallax need not be installed. Every figure is the
median of ratios to the same program without tallax, taken within rounds in which both sides run in a random order. A
histogram is compared with one read of its input, `jnp.max`, and the read with the bandwidth of a copy.

On the CPU all sizes are small: this shows that the script works, and its figures are not valid for an accelerator. If
five minutes have passed, compilation included, the groups that are done are written and the process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))  # a plain copy of the tree is enough

import flax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

import tallax  # noqa: E402

BUDGET_S = 280.0  # of the five minutes; a group that would begin after it is skipped and listed
LAST_S = 295.0  # a compilation cannot be interrupted, so the process ends then
GROUP_S = 12.0  # for timing the calls of one group, without compilation
MIN_ROUNDS, MAX_ROUNDS = 5, 60
READS = 4  # in one timed call

Call = Callable[[], Any]  # runs once and returns arrays to wait for


class Timed:
    """A call, and another one before each, which is not timed."""

    def __init__(self, call: Call, before: Call):
        self.call, self.before = call, before

    def __call__(self) -> Any:
        return self.call()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The amount of work.

    Attributes:
        values: the number of float32 entries that a statistic reads.
        counters: the number of counters and of mixed state in a step.
        layers, width, heads, tokens, sequences, vocabulary: the transformer and its batch.
        calls: the number of steps between two log records, and in one timed call of a loop.
    """

    values: int
    counters: int
    layers: int
    width: int
    heads: int
    tokens: int
    sequences: int
    vocabulary: int
    calls: int = 10


ACCELERATOR = Sizes(2**28, 1000, 12, 768, 12, 512, 16, 32_768)
CPU = Sizes(2**20, 100, 2, 32, 2, 16, 2, 128)


# --- the programs -----------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """A pre-norm transformer block in bfloat16, with parameters in float32."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": jnp.bfloat16, "rngs": rngs}
        self.norm_1, self.norm_2 = nnx.LayerNorm(sizes.width, **options), nnx.LayerNorm(sizes.width, **options)
        self.attention = nnx.MultiHeadAttention(sizes.heads, sizes.width, decode=False, **options)
        self.up = nnx.Linear(sizes.width, 4 * sizes.width, **options)
        self.down = nnx.Linear(4 * sizes.width, sizes.width, **options)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Transformer(nnx.Module):
    """A decoder, whose `keep` is given the output of each block."""

    def __init__(self, sizes: Sizes, keep: Callable[[], nnx.Module] | None = None):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(sizes.vocabulary, sizes.width, dtype=jnp.bfloat16, rngs=rngs)
        self.layers = nnx.List([Block(sizes, rngs) for _ in range(sizes.layers)])
        self.norm = nnx.LayerNorm(sizes.width, dtype=jnp.bfloat16, rngs=rngs)
        self.keep = None if keep is None else keep()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x, mask = self.embed(tokens), nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        if self.keep is not None:
            self.keep(jax.lax.stop_gradient(x).astype(jnp.float32).mean((0, 1)))
        return self.embed.attend(self.norm(x))


class ManyCounters(nnx.Module):
    """Adds one of a vector's comparisons to each of many counters."""

    def __init__(self, number: int):
        self.counts = nnx.List([tallax.Counter() for _ in range(number)])

    def __call__(self, values: jax.Array) -> None:
        above = jnp.resize(values, len(self.counts)) > 0
        for k, count in enumerate(self.counts):
            count.increment(above[k].astype(jnp.uint32))


class MixedState(nnx.Module):
    """Counters, rates and histograms in turn, each with a threshold of its own, so that XLA can share nothing."""

    def __init__(self, number: int):
        makers = (tallax.Counter, tallax.statistics.Rate, lambda: tallax.statistics.Histogram(-3.0, 3.0, 8))
        self.state = nnx.List([makers[k % 3]() for k in range(number)])

    def __call__(self, values: jax.Array) -> None:
        for k, state in enumerate(self.state):
            x = values - k / 1e4
            if isinstance(state, tallax.Counter):
                state.count(x > 0)
            else:
                state.update(x > 0 if isinstance(state, tallax.statistics.Rate) else x)


def train_step(model: Transformer, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
    """Updates the model on the next token and returns the loss."""

    def loss_fn(model: Transformer) -> jax.Array:
        logits = model(tokens[:, :-1]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    loss, grads = tallax.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def training(
    sizes: Sizes, keep: Callable[[], nnx.Module] | None = None, watched: Callable[..., Any] | None = None
) -> tuple[Transformer, Any, jax.Array]:
    """Returns a model, its compiled step and a batch."""
    model = Transformer(sizes, keep)
    optimizer = nnx.Optimizer(model, optax.adam(1e-4), wrt=nnx.Param)
    if watched is not None:
        watched(model, optimizer)
    tokens = jax.random.randint(jax.random.key(0), (sizes.sequences, sizes.tokens + 1), 0, sizes.vocabulary)
    return model, tallax.compile_step(train_step, model, optimizer), tokens


def stepping(*args: Any) -> Call:
    """Returns a call of a compiled step."""
    _, step, tokens = training(*args)
    return lambda: step(tokens)


# --- the groups -------------------------------------------------------------------------------------------------------


def reads(sizes: Sizes, _: contextlib.ExitStack) -> dict[str, Call]:
    """Some reads of a large array, as many copies of it, and updates with it."""
    x = jax.random.normal(jax.random.key(1), (sizes.values,))

    # Several without waiting, so that the work of Python for one is done while the device works on another. Only the
    # last result is held, or else the copies would take four times the memory.
    def repeated(call: Callable[[jax.Array], Any]) -> Call:
        def calls() -> Any:
            for _ in range(READS - 1):
                call(x)
            return call(x)

        return calls

    made = {
        "Histogram.update": tallax.statistics.Histogram(-4.0, 4.0, 64),
        "LogHistogram.update": tallax.statistics.LogHistogram(),
        "Moments.update": tallax.statistics.Moments(),
    }
    calls = {"one read (jnp.max)": repeated(jax.jit(jnp.max)), "copy (x + 1)": repeated(jax.jit(lambda x: x + 1))}

    def update(statistic: Any, x: jax.Array) -> jax.Array:
        statistic.update(x)
        return x[0]  # to wait for; a reading would add the way to the host to the time

    for name, statistic in made.items():
        calls[name] = repeated(tallax.compile_step(update, statistic))
    return calls


def counters(sizes: Sizes, _: contextlib.ExitStack) -> dict[str, Call]:
    """A step without state, and with many counters and mixed state."""
    number = sizes.counters
    return {
        "step": stepping(sizes),
        f"step with {number} counters": stepping(sizes, lambda: ManyCounters(number)),
        f"step with {number} counters, rates and histograms": stepping(sizes, lambda: MixedState(number)),
    }


def watching(sizes: Sizes, _: contextlib.ExitStack) -> dict[str, Call]:
    """A step that is not watched, and watched whole at every step and at every tenth."""

    def watch(model: Any, optimizer: Any, every: int) -> None:
        tallax.watch(
            model,
            optimizer,
            outputs=True,
            output_gradients=True,
            parameters=True,
            gradients=True,
            updates=True,
            every=every,
        )

    return {
        "step": stepping(sizes),
        "step, watched at every step": stepping(sizes, None, functools.partial(watch, every=1)),
        "step, watched at every 10th step": stepping(sizes, None, functools.partial(watch, every=10)),
    }


def loops(sizes: Sizes, stack: contextlib.ExitStack) -> dict[str, Call]:
    """Ten steps: alone, with a log record, with a reading, and with an asynchronous save."""
    keep = functools.partial(MixedState, 30)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallax-accelerator-")))

    def loop(after: Callable[[Any, Any], Any] | None) -> Call:
        _, step, tokens = training(sizes, keep)

        def call() -> Any:
            for _ in range(sizes.calls):
                loss = step(tokens)
            return loss if after is None else (loss, after(step, loss))[0]

        return call

    log = stack.enter_context(tallax.Logger(tallax.sinks.Jsonl(folder / "run"), every=1))
    checkpoints = stack.enter_context(tallax.Checkpoints(folder / "checkpoints", keep=1))
    numbers = iter(range(1, 10_000))
    return {
        "10 steps": loop(None),
        "10 steps and a log record": loop(lambda step, loss: log(step, step=next(numbers), loss=loss)),
        "10 steps and a collect": loop(lambda step, loss: step.collect()),
        # The last save is waited for first, so that the figure is the time taken from the loop, not that of the disk.
        "10 steps and a save in the background": Timed(
            loop(lambda step, loss: checkpoints.save(next(numbers), step)), checkpoints.wait
        ),
    }


GROUPS: Mapping[str, Callable[[Sizes, contextlib.ExitStack], dict[str, Call]]] = {
    "reads": reads,
    "counters": counters,
    "watching": watching,
    "loops": loops,
}
LIMITS = {  # goals on an accelerator, as ratios
    "Histogram.update": 1.5,
    "step with 1000 counters": 1.02,
    "step, watched at every step": 1.02,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def wait(result: Any) -> None:
    """Waits for arrays, or for a reading."""
    if hasattr(result, "result"):
        result.result()
    else:
        jax.block_until_ready(result)


def measure(calls: Mapping[str, Call], seconds: float) -> dict[str, dict[str, float]]:
    """Times calls side by side for some seconds: the first is the base of all ratios."""
    compile_s = {}
    for name, call in calls.items():
        began = time.perf_counter()
        wait(call())
        compile_s[name] = time.perf_counter() - began
    for call in calls.values():  # the second call may still allocate
        wait(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, ends = list(calls), time.perf_counter() + seconds
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > ends:
            break
        random.shuffle(order)
        for name in order:
            if isinstance(call := calls[name], Timed):
                call.before()
            began = time.perf_counter()
            wait(call())
            times[name].append(time.perf_counter() - began)
    base = times[next(iter(calls))]
    return {
        name: {
            "median_s": statistics.median(taken),
            "ratio": statistics.median(a / b for a, b in zip(taken, base, strict=True)),
            "first_call_s": compile_s[name],
            "rounds": len(taken),
        }
        for name, taken in times.items()
    }


def machine() -> dict[str, Any]:
    """Returns the device and the versions."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "tallax": tallax.__version__,
    }


def run(names: list[str], sizes: Sizes, seconds: float, out: dict[str, Any]) -> None:
    """Measures the groups in turn, and adds their figures to `out`."""
    began = time.perf_counter()
    for name in names:
        if time.perf_counter() - began > BUDGET_S - 3 * seconds:
            out["skipped"][name] = "no time was left"
            continue
        try:
            with contextlib.ExitStack() as stack:
                out["groups"][name] = measure(GROUPS[name](sizes, stack), seconds)
        except Exception as error:  # one group that fails must not lose the others' figures
            out["skipped"][name] = f"{type(error).__name__}: {error}"
        jax.clear_caches()
    if reading := out["groups"].get("reads"):
        out["copy_bytes_per_s"] = READS * 2 * 4 * sizes.values / reading["copy (x + 1)"]["median_s"]
    out["seconds"] = time.perf_counter() - began


def show(figures: Mapping[str, Any]) -> None:
    """Prints the figures as a table."""
    where = figures["machine"]
    print(f"Measured on {where['devices']} x {where['device']} ({where['platform']}), the default device of JAX.")
    if where["platform"] == "cpu":
        print("This is not an accelerator: the sizes are small, and the figures are not valid for one.")
    print(" ".join(f"{key}={value}" for key, value in where.items()))
    for group, rows in figures["groups"].items():
        print(f"\n{group}")
        for name, row in rows.items():
            goal = f"  goal {LIMITS[name]}" if name in LIMITS and figures["machine"]["platform"] != "cpu" else ""
            print(f"  {name:52} {row['median_s'] * 1e3:10.3f} ms {row['ratio']:7.3f}x{goal}")
    for name, why in figures["skipped"].items():
        print(f"\n{name}: not measured: {why}")
    if "seconds" in figures:
        print(f"\n{figures['seconds']:.0f} s in all")


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints and writes; returns 1 if a group could not be measured."""
    parser = argparse.ArgumentParser(description="Measure tallax on the device that JAX finds.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--small", action="store_true", help="the sizes of the CPU on any device")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "accelerator.json")
    parser.add_argument("--seconds", type=float, default=GROUP_S, help="for timing one group, without compilation")
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown groups: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    small = options.small or jax.default_backend() == "cpu"
    sizes, names = CPU if small else ACCELERATOR, options.groups or list(GROUPS)
    out: dict[str, Any] = {"machine": machine(), "sizes": dataclasses.asdict(sizes), "groups": {}, "skipped": {}}

    def report() -> int:
        out["skipped"] |= {
            name: "no time was left" for name in names if name not in {**out["groups"], **out["skipped"]}
        }
        show(out)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(out, indent=1) + "\n")
        return 1 if out["skipped"] else 0

    def end() -> None:
        report()
        sys.stdout.flush()
        os._exit(1)  # the main thread may be in a compilation

    # Several calls run the same program: the bare step of two groups, and all steps of the loops. On a GPU its
    # compilation takes half a minute, so it is kept on disk, for this run alone.
    cache = tempfile.mkdtemp(prefix="tallax-accelerator-")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    last = threading.Timer(LAST_S, end)
    last.daemon = True
    last.start()
    try:
        run(names, sizes, options.seconds, out)
    finally:
        last.cancel()
        shutil.rmtree(cache, ignore_errors=True)
    return report()


if __name__ == "__main__":
    sys.exit(main())
