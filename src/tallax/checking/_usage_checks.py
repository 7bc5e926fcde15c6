# SPDX-License-Identifier: Apache-2.0
"""Warnings about a model that is correct by itself: uses that lose its state silently, and host callbacks.

The model is not at fault and cannot prevent these losses: the transformations that run here pass a copy of the model to
a function and drop the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from tallax.checking._check_results import Results, reported
from tallax.checking._diagnosis import finding_of
from tallax.checking._program import Batch, Program, Reference
from tallax.checking._snapshot import attribute_of, changed, snapshot
from tallax.checking._transformations import GRAPH, stacked
from tallax.checking._uncompiled_runs import UncompiledRuns

Use = Callable[[Program, Any, Batch], Any]


def _scan_broadcast(program: Program, model: Any, batches: Batch) -> None:
    nnx.scan(program.call, in_axes=(None, 0), out_axes=0)(model, batches)


def _vmap_broadcast(program: Program, model: Any, batches: Batch) -> None:
    nnx.jit(nnx.vmap(program.call, in_axes=(None, 0), out_axes=0))(model, batches)


def _raw_jit(program: Program, model: Any, batches: Batch) -> None:
    step = jax.jit(program.call)
    for batch in zip(*batches, strict=True):
        step(model, batch)


def _raw_remat(program: Program, model: Any, batches: Batch) -> None:
    step = nnx.jit(jax.checkpoint(program.call))
    for batch in zip(*batches, strict=True):
        step(model, batch)


_USES: dict[str, Use] = {
    "nnx.scan with the model broadcast (in_axes=None), in graph mode": _scan_broadcast,
    "nnx.vmap with the model broadcast (in_axes=None): once a call, not once a lane": _vmap_broadcast,
    "jax.jit(step)(model), without returning the model": _raw_jit,
    "jax.checkpoint(step)(model), without returning the model": _raw_remat,
}


def silent_losses(program: Program, reference: Reference) -> Results:
    """Runs the model under the transformations that lose updates silently, and lists the state that they lose."""
    lost: dict[str, list[str]] = {}
    written = [path for path in reference.written if path in reference.end and reference.end[path].kind == "variable"]
    if written:
        runs = UncompiledRuns(program)
        for where, use in _USES.items():

            def run(models: list[Any], batches: Sequence[Batch], use: Use = use) -> None:
                use(program, models[0], stacked(batches))

            try:
                with GRAPH.active():
                    got = snapshot(runs.run_or_compile(run, program.batches)[0])
            except Exception:  # it raises, so the loss is not silent
                continue
            wrong = [path for path in changed(reference.end, got) if path in written]
            agrees = set(written) - set(wrong)
            if wrong and not (where.startswith("nnx.vmap") and agrees):
                for path in wrong:
                    lost.setdefault(attribute_of(path, reference.start), []).append(where)
    findings = []
    if lost:
        paths = list(lost)
        findings.append(
            finding_of(
                "lost-update",
                ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else ""),
                "can be lost silently, as any Variable can, if the model is used like this.",
                *dict.fromkeys(where for wheres in lost.values() for where in wheres),
                is_warning=True,
            )
        )
    yield from reported("ways to lose state", findings, "" if written else "no state")


def callbacks(program: Program, reference: Reference) -> Results:
    """Finds callbacks to the host, which a transformation may run twice or not at all."""

    def pure(state: Any, batch: Batch) -> Any:
        return program.call(nnx.merge(graphdef, state, copy=True), batch)

    graphdef, state = nnx.split(program.new_model())
    try:
        text = str(jax.make_jaxpr(pure)(state, program.batches[0]))
    except Exception:  # `transformations` reports the error
        text = ""
    names = [name for name in ("io_callback", "pure_callback", "debug_callback") if f"{name}[" in text]
    yield from reported(
        "callbacks",
        [
            finding_of(
                "host-callback",
                "",
                f"calls back to the host ({name}); a count kept on the host is wrong under vmap and remat, and on many "
                "devices.",
                is_warning=True,
            )
            for name in names
        ],
    )
