# SPDX-License-Identifier: Apache-2.0
"""Group `watch`: a step of a transformer whose tensors are watched, beside the same step without a watch.

`python -m benchmarks watch` times the steps of the 4-layer model.

`python -m benchmarks watch-costs` measures all costs: steps, compilation and temporary memory of 4 and 12 layers,
unrolled and scanned, the time of the host at each call with 500 modules, and `nnx.capture` and `optax.monitor` beside
it. `python -m benchmarks.watch --only PART` measures one part.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks import _report, transformer
from benchmarks._timing import Case, Group

NONE = "not watched"
EVERYTHING = {"output_gradients": True, "parameters": True, "gradients": True, "updates": True}
WATCHED: dict[str, dict[str, Any]] = {
    "outputs": {},
    "outputs and their gradients": {"output_gradients": True},
    "everything": EVERYTHING,
    "everything, every=10": {**EVERYTHING, "every": 10},
}
Objects = tuple[Any, nnx.Optimizer]


def group(layers: int = 4) -> Group:
    """Returns the cases."""
    return Group(
        "watch",
        f"a step of a {layers}-layer transformer of width 128 with Adam, 8 x 128 tokens",
        NONE,
        [
            Case(name=NONE, make=lambda: ref.by_compile_step(*_watched(layers, None), transformer.train_step)),
            *(
                Case(
                    name=name,
                    make=lambda how=how: ref.by_compile_step(*_watched(layers, how), transformer.train_step),
                    limit={"everything": 1.12, "everything, every=10": 1.02}.get(name),
                )
                for name, how in WATCHED.items()
            ),
        ],
        rounds_in_one=5,
    )


def _watched(layers: int, how: Mapping[str, Any] | None) -> tuple[Objects, tuple[jax.Array]]:
    (model, optimizer), batch = transformer.model_and_batch(transformer.Size(layers=layers), 0)
    if how is not None:
        tallax.watch(model, optimizer, **how)
    return (model, optimizer), batch


class _Scanned(nnx.Module):
    """The transformer with a stack of layers that `nnx.scan` runs."""

    def __init__(self, size: transformer.Size, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(size.vocabulary, size.width, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((size.tokens, size.width)))
        make = nnx.vmap(lambda rngs: transformer._Layer(size, 0, False, rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=size.layers)(make)(rngs)
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x, mask = self.embedding(tokens) + self.position[...], nnx.make_causal_mask(tokens)
        run = nnx.scan(lambda layer, x: layer(x, mask), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.embedding.attend(self.norm(run(self.layers, x)))


def _scanned(layers: int, how: Mapping[str, Any] | None) -> tuple[Objects, tuple[jax.Array]]:
    size = transformer.Size(layers=layers)
    model = _Scanned(size, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    if how is not None:
        tallax.watch(model, optimizer, **how)
    return (model, optimizer), transformer.model_and_batch(transformer.Size(layers=1), 0)[1]


def measured(made: tuple[Objects, tuple[Any, ...]], step: Any = transformer.train_step) -> tuple[Any, dict[str, float]]:
    """Returns a call that runs a compiled step, and the costs of its compilation."""
    objects, batch = made
    compiled = tallax.compile_step(step, *objects)
    start = time.process_time()
    lowered = compiled.lower(*batch)
    middle = time.process_time()
    program = lowered.compile()
    end = time.process_time()
    costs = {"lower_seconds": middle - start, "compile_seconds": end - middle, "both_seconds": end - start}
    memory: Any = program.memory_analysis()
    return lambda: compiled(*batch), {**costs, "temporary_bytes": memory.temp_size_in_bytes}


Makers = Mapping[str, tuple[Callable[[], tuple[Objects, tuple[Any, ...]]], Any]]


def compiled_in_turn(makers: Makers, rounds: int) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, float]]]:
    """Returns the compiled step of each case, and the medians of its costs in several compilations.

    Args:
        makers: A function that makes the objects and a batch, and the step, by the name of the case.
        rounds: The number of compilations of each case; all cases are compiled in turn.
    """
    calls, found = {}, {name: [] for name in makers}
    for _ in range(rounds):
        for name, (make, step) in makers.items():
            calls[name], costs = measured(make(), step)
            found[name].append(costs)
    return calls, {
        name: {key: statistics.median(each[key] for each in costs) for key in costs[0]} for name, costs in found.items()
    }


def medians(
    calls: Mapping[str, Callable[[], Any]], seconds: float, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Returns the median time of each call, run in turn for some seconds, all together.

    Args:
        calls: The calls.
        seconds: The time for which they run.
        clock: `perf_counter` for the time until the device is ready; `thread_time` for the work of the calling thread,
            without the device, which works elsewhere.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())  # a thread that waits does not work
            times[name].append(clock() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def compared(makers: Makers, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the costs of a step in each case, and their ratios to those of the first case."""
    calls, costs = compiled_in_turn(makers, rounds)
    for name, each in medians(calls, seconds).items():
        costs[name]["step_seconds"] = each
    return with_ratios(costs)


def with_ratios(costs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the costs of each case, with their ratios to those of the first case."""
    first = next(iter(costs.values()))
    return {
        name: each | {f"{key}_ratio": value / first[key] for key, value in each.items() if first.get(key)}
        for name, each in costs.items()
    }


class _Many(nnx.Module):
    """Tiny layers, so that a call takes the host longer than the device."""

    def __init__(self, number: int):
        self.layers = nnx.List([_Scale() for _ in range(number)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.stack([layer(x) for layer in self.layers]).sum(0)


class _Scale(nnx.Module):
    def __init__(self):
        self.factor = nnx.Param(jnp.ones(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.factor[...]


def _many_step(model: Any, optimizer: nnx.Optimizer, x: jax.Array) -> Any:
    """Returns a gradient of the input, and leaves 500 Params and 1,000 arrays of Adam as they are.

    The host passes all of them to the program and takes them back, as in any step, but updates of them would compile
    for minutes. The product takes long enough that JAX does not run the program on the calling thread.
    """
    del optimizer
    found = tallax.value_and_grad(lambda model, x: model(x).sum(), argnums=1)(model, x)
    return found, (jnp.ones((400, 400)) * x[0]) @ (jnp.ones((400, 400)) + x[1])


def of_host(sites: int, seconds: float) -> dict[str, dict[str, float]]:
    """Returns the time of the calling thread in a call, with the outputs of many modules watched and without."""
    calls, costs = {}, {}
    for name, how in {NONE: None, "outputs": {}}.items():
        model = _Many(sites)
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        if how is not None:
            tallax.watch(model, optimizer, sites="layers/*", **how)
        calls[name], costs[name] = measured(((model, optimizer), (jnp.ones(4),)), _many_step)
    for name, each in medians(calls, seconds, clock=time.thread_time).items():
        costs[name]["host_seconds"] = each
    return with_ratios(costs)


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(x * x))


def _captured_step(model: Any, optimizer: nnx.Optimizer, tokens: jax.Array) -> Any:
    """Returns the RMS of each output, which `nnx.capture` takes out of the forward pass."""

    def loss_fn(model: Any) -> tuple[jax.Array, Any]:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            logits, outputs = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(tokens[:, :-1])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
        floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
        return loss, [_rms(x) for x in floats]

    (loss, numbers), grads = tallax.value_and_grad(loss_fn, has_aux=True)(model)
    ref.update(optimizer, model, grads)
    return loss, numbers


def of_others(layers: int, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the costs of `nnx.capture` and `optax.monitor`, each beside a watch of the same tensors."""
    size = transformer.Size(layers=layers)

    def monitored() -> tuple[Objects, tuple[jax.Array]]:
        (model, _), batch = transformer.model_and_batch(size, 0)
        measure: dict[str, Any] = {"rms": lambda updates: jax.tree.map(_rms, updates)}
        # The measurements are state of the optimizer, whose structure changes in the first step unless it begins with
        # them, as JAX requires under `scan`, and `compile_step` everywhere.
        transform = optax.chain(_begun(optax.monitor(measure)), optax.adam(1e-3), _begun(optax.monitor(measure)))
        return (model, nnx.Optimizer(model, transform, wrt=nnx.Param)), batch

    usual = transformer.train_step
    some = {"outputs": False, "gradients": True, "updates": True}
    makers: Makers = {
        NONE: (lambda: _watched(layers, None), usual),
        "nnx.capture: the RMS of each output of this step": (lambda: _watched(layers, None), _captured_step),
        "tallax.watch: outputs, of all steps": (lambda: _watched(layers, {}), usual),
        "optax.monitor: the RMS of gradients and updates of this step": (monitored, usual),
        "tallax.watch: gradients and updates, of all steps": (lambda: _watched(layers, some), usual),
    }
    return compared(makers, seconds, rounds)


def _begun(monitor: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> Any:
        state = monitor.init(params)
        shapes = jax.eval_shape(lambda: monitor.update(params, state, params)[1])
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return optax.GradientTransformationExtraArgs(init, monitor.update)


# The limits of issue "watch"; ratios to the step that is not watched.
LIMITS = {
    "layers": {"step": {"everything": 1.12, "everything, every=10": 1.02}, "compile": 2.0, "temporary": 1.01},
    "scanned": {"compile": 1.25, "temporary": 1.01},
    "host": {"host": 1.1},
}


def main(arguments: list[str] | None = None) -> None:
    """Measures costs and writes `watch-costs.json`; parts that are not measured keep their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description="Costs of tallax.watch.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"), help="a folder")
    parser.add_argument("--quick", action="store_true", help="2 layers and 20 sites, to see whether everything runs")
    parser.add_argument("--only", choices=("layers", "deep", "scanned", "host", "others"), help="the part to measure")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    few, many, sites, seconds, rounds = (2, 2, 20, 1.0, 1) if options.quick else (4, 12, 500, 20.0, 3)

    def makers(make: Callable[..., Any], layers: int, names: tuple[str, ...]) -> Makers:
        cases = {NONE: None, **{name: WATCHED[name] for name in names}}
        return {name: (lambda how=how: make(layers, how), transformer.train_step) for name, how in cases.items()}

    both, usual = ("everything", "everything, every=10"), tuple(WATCHED)
    parts: dict[str, tuple[str, Callable[[], dict[str, dict[str, float]]]]] = {
        "layers": (f"{few} layers", lambda: compared(makers(_watched, few, usual), seconds, rounds)),
        "deep": (f"{many} layers", lambda: compared(makers(_watched, many, both), 2 * seconds, rounds)),
        "scanned": (f"{many} layers, scanned", lambda: compared(makers(_scanned, many, both), seconds, rounds)),
        "host": (f"{sites} modules", lambda: of_host(sites, seconds / 4)),
        "others": (f"{few} layers", lambda: of_others(few, seconds, rounds)),
    }
    measured(_watched(1, None))  # starts the compiler
    path = options.output / "watch-costs.json"
    found = json.loads(path.read_text())["parts"] if path.exists() else {}
    for part, (model, measure) in parts.items():
        if options.only in (None, part):
            found[part] = {"model": model, "cases": measure()}
            heading = _report.heading("watch-costs", "costs of a watched step")
            _report.write_record(options.output, {**heading, "quick": options.quick, "limits": LIMITS, "parts": found})
            for name, numbers in found[part]["cases"].items():
                ratios = " ".join(f"{key[:-6]} {value:.2f}" for key, value in numbers.items() if key.endswith("_ratio"))
                sys.stdout.write(f"{part:8} {model:20} {name:60} {ratios}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
