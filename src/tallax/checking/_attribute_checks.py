# SPDX-License-Identifier: Apache-2.0
"""The checks on the attributes and parameters of a model, and on its eval mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tallax.checking._call_checks import writes_of
from tallax.checking._check_results import Results, reported
from tallax.checking._diagnosis import explained, finding_of
from tallax.checking._program import Program, Reference
from tallax.checking._report import Cell, Finding, Outcome
from tallax.checking._snapshot import Leaf, Snapshot, attribute_of, changed, is_within, paths_of, snapshot, variables_of
from tallax.checking._source_lines import line_of_assignment

# These wrappers of Flax rewrite the parameters of the layer they wrap. An optimizer trains the parameters as usual.
_REWRITERS = (nnx.SpectralNorm, nnx.WeightNorm)
# These should change in evaluation: random streams, caches for decoding, sown values, metrics.
_LIVE_IN_EVAL = (nnx.RngState, nnx.Cache, nnx.Intermediate)


def attributes(program: Program, reference: Reference) -> Results:
    """A Variable stays a Variable, and no plain Python attribute changes."""
    findings, model = [], program.new_model()
    for path in sorted(reference.written):
        states = [state[path] for state in (reference.start, *reference.after) if path in state]
        first, last = states[0], states[-1]
        if path in reference.start and path in reference.end and first.kind == "variable" and last.kind != "variable":
            findings.append(
                finding_of(
                    "replaced-variable",
                    path,
                    f"was a {_holder(first)}, but after a call it is {_kind_words(last)}: transformations, optimizers "
                    "and checkpoints no longer see it as state.",
                    "plain calls",
                    got=last,
                    expected=f"a {_holder(first)}",
                    model=model,
                )
            )
        elif {leaf.kind for leaf in states} == {"attribute"}:
            findings.append(
                finding_of(
                    "python-counter",
                    path,
                    "is a plain Python attribute that calls change: compiled code changes it only while it is traced, "
                    "compiles again for every value, or loses it; checkpoints do not contain it.",
                    "plain calls",
                    got=" → ".join(dict.fromkeys(leaf.describe() for leaf in states)),
                    expected="a Variable",
                    model=model,
                )
            )
    yield from reported("attributes", findings)


def _holder(leaf: Leaf) -> str:
    return leaf.variable.__name__ if leaf.variable else leaf.kind


def _kind_words(leaf: Leaf) -> str:
    return "a bare array" if leaf.kind == "array" else f"a plain {type(leaf.value).__name__}"


def parameters(program: Program, reference: Reference) -> Results:
    """An `nnx.Param` is written by the optimizer only."""
    model = program.new_model()
    variables = variables_of(model)
    trained = _trained(program, reference)
    before, after = after_weight_decay(program.model_after(len(program.batches)))
    rewritten = paths_of(model, _REWRITERS)
    findings = []
    for path, leaf in reference.start.items():
        if leaf.variable is None or not issubclass(leaf.variable, nnx.Param) or is_within(path, rewritten):
            continue
        is_float = jnp.issubdtype(leaf.value.dtype, jnp.floating)
        ends = reference.end.get(path)
        variable = variables.get(path)
        if not is_float:
            message = f"is a {leaf.variable.__name__} of {leaf.value.dtype}s, which no gradient can train."
        elif path in reference.written and path not in trained and ends is not None and ends.kind == "variable":
            message = f"is a {leaf.variable.__name__} that the model itself writes, and the optimizer changes it too."
        elif variable is not None and variable.has_metadata("trainable") and not variable.get_metadata("trainable"):
            message = f"is a {leaf.variable.__name__} with trainable=False, which Flax and optax ignore."
        else:
            continue
        decayed = (before[path], after[path]) if is_float and path in before and path in after else ()
        findings.append(
            finding_of(
                "param-state",
                path,
                message,
                *(["one adamw step with zero gradients and weight decay 0.1"] if is_float else []),
                got=" → ".join(leaf.describe() for leaf in decayed),
                expected="unchanged by an optimizer",
                model=model,
            )
        )
    yield from reported("parameters", findings)


def _writers_of(path: str, writers: dict[str, set[str]]) -> set[str]:
    """Returns the writers of the Variable at a path. If the Variable stores a tree, the path may lead into the tree."""
    while path and path not in writers:
        path = path.rpartition("/")[0]
    return writers.get(path, set())


def _trained(program: Program, reference: Reference) -> set[str]:
    """Returns the parameters and the optimizer state that a `call=` writes outside of any module's forward pass.

    If there are any, `call=` is a training step: it may write parameters, and it cannot run in eval mode.
    """
    if program.is_own_call:
        return set()
    writers = writes_of(program).writers
    return {
        path
        for path in reference.written
        if path in reference.start
        and (holder := reference.start[path].variable) is not None
        and issubclass(holder, (nnx.Param, nnx.OptState))
        and "forward" not in _writers_of(path, writers)
    }


def after_weight_decay(model: Any) -> tuple[Snapshot, Snapshot]:
    """Returns the state before and after a step that should change only float parameters.

    The step is one of adamw with weight decay 0.1 and gradients of zero.
    """

    def is_trained(path: Any, node: Any) -> bool:
        return isinstance(node, nnx.Param) and all(
            jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(node)
        )

    def step(parameters: Any) -> Any:
        optimizer = optax.adamw(0.1, weight_decay=0.1)
        gradients = jax.tree.map(jnp.zeros_like, parameters)
        updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
        return optax.apply_updates(parameters, updates)

    before, parameters = snapshot(model), nnx.as_pure(nnx.state(model, is_trained))
    if jax.tree.leaves(parameters):
        # One program: `nnx.Optimizer` compiles each of its operations alone, about twenty for each shape.
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
            nnx.update(model, jax.jit(step)(parameters))
    return before, snapshot(model)


# --- eval mode --------------------------------------------------------------------------------------------------------


def eval_mode(program: Program, reference: Reference) -> Results:
    """After `model.eval()`, calls change only caches, random streams and metrics."""
    training, model = program.new_model(), program.new_model()
    for module, mode in ((training, "train"), (model, "eval")):
        if isinstance(module, nnx.Module):  # metrics have no train or eval mode
            getattr(module, mode)()
    before = snapshot(model)
    switches = changed(snapshot(training), before)
    if program.is_copied and not changed(reference.start, before):  # the calls would be those of the reference
        model = program.model_after(len(program.batches))
    else:
        try:
            for batch in program.batches:
                program.plain_call(model, batch)
        except Exception as error:
            found = explained(error, program.new_model(), before, "after model.eval()", shared=False)
            yield from reported("eval mode", [found])
            return
    after = snapshot(model)
    if not reference.written:
        yield Cell("eval mode", "", Outcome.SKIPPED, "no state")
        return
    if not program.is_own_call and (_trained(program, reference) or set(changed(before, after)) & set(switches)):
        yield Cell("eval mode", "", Outcome.SKIPPED, "call= is a training step; check the model's own call as well")
        return
    findings = _changes_in_eval(program, model, before, after, bool(switches))
    if findings and not program.is_own_call:
        writers = writes_of(program).writers
        findings = [finding for finding in findings if _writers_of(finding.path, writers) != {"call"}]
    yield from reported("eval mode", findings, "" if switches else "the model has no eval switch")


def _changes_in_eval(program: Program, model: Any, before: Snapshot, after: Snapshot, switched: bool) -> list[Finding]:
    metrics = paths_of(model, nnx.Metric)
    findings: dict[str, Finding] = {}
    for path in changed(before, after):
        leaf = after.get(path, before.get(path))
        if leaf is None or leaf.kind != "variable" or _lives_in_eval(leaf) or is_within(path, metrics):
            continue
        if before.get(path) and leaf.variable is not None and issubclass(leaf.variable, nnx.Param):
            continue  # `parameters` reports it
        message = "changes in eval mode, so evaluating the model changes its training state."
        if not switched:
            message = "changes in every call, and the model has no attribute that model.eval() can switch off."
            if not (leaf.variable and issubclass(leaf.variable, nnx.BatchStat)):
                continue
        attribute = attribute_of(path, before)
        findings.setdefault(
            attribute,
            finding_of(
                "eval-mode",
                attribute,
                message,
                "model.eval(), then calls",
                got=after.get(path),
                expected=before.get(path),
                source=line_of_assignment(model, path),
                is_warning=not switched,
            ),
        )
    return list(findings.values())


def _lives_in_eval(leaf: Leaf) -> bool:
    holder = leaf.variable or object
    return issubclass(holder, _LIVE_IN_EVAL) or "cache" in holder.__name__.lower()
