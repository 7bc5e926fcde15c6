# SPDX-License-Identifier: Apache-2.0
"""Makes the findings of the checks: the usual fix of each rule, and the rule of a difference or an error."""

from __future__ import annotations

import re
from typing import Any

import flax.errors
import jax
import numpy as np
from flax import nnx

from tallax._errors import TallaxError
from tallax.checking._report import Finding
from tallax.checking._snapshot import LEAKED, Difference, Leaf, Opaque, Snapshot, words_for
from tallax.checking._source_lines import line_of_assignment, line_of_error

OUTPUT = "output"

_FIXES = {
    "lost-update": "pass the module to nnx.jit, nnx.remat or nnx.scan (as nnx.Carry), which update its state; "
    "with jax.*, split it with nnx.split and return nnx.state(model)",
    "frozen-value": "read it within the transformed function from a module that is its argument, not from a closure, a "
    "global or a Python number",
    "replaced-variable": "self.{name}[...] = value keeps the Variable; or derive from tallax.Module, which refuses "
    "this; a count is self.{name} += 1 on a tallax.Counter",
    "python-counter": "keep it in a Variable: self.{name} = tallax.Counter(), then self.{name} += 1; or "
    "tallax.Buffer(value), then self.{name}[...] = value",
    "host-sync": "stay on the device: jnp.where or nnx.cond for a decision, counter.every(n) for every n-th step; read "
    "it outside the step",
    "differs": "let it depend only on the arguments and the Variables of the module",
    "counted-twice": "write state once per call, on a plain Variable (without ref=True), outside of code that you "
    "rematerialize by hand",
    "raises": "read the error; the model runs without this transformation",
    "not-reproducible": "seed it: nnx.Rngs(0) in the factory, jax.random with the module's own rngs; no globals, no "
    "clock",
    "retrace": "create it with its final shape and a strong dtype, jnp.zeros((), jnp.float32) instead of 0.0, and "
    "write values of that dtype: value.astype(...)",
    "param-state": "self.{name} = tallax.Counter() for a count, tallax.Buffer(value) for anything else; plain "
    "nnx.Variable and nnx.BatchStat are not parameters either",
    "eval-mode": "write it only `if not self.deterministic:` (or use_running_average), which model.eval() sets; "
    "tallax's statistics and StepCounter do that",
    "narrow-counter": "self.{name} = tallax.Counter(), exact up to 2**64 - 1",
    "round-trip": "keep it in a Variable on the module; no closures, globals or plain Python attributes",
    "host-callback": "count on the device, in a tallax.Counter, and read it outside the step",
    "shared-array": "start it with a copy: jnp.array(value, copy=True)",
}

_FIX_OF_MADE = (
    "create it in __init__; if it is sown, remove it after each call with nnx.capture or nnx.pop, or use a tallax "
    "statistic"
)


def finding_of(
    rule: str,
    path: str,
    message: str,
    *where: str,
    got: Leaf | str | None = "",
    expected: Leaf | str | None = "",
    model: Any = None,
    fix: str = "",
    source: str = "",
    is_warning: bool = False,
) -> Finding:
    """Returns a finding, with the fields of `Finding`.

    If `fix` is empty, it is the usual fix of the rule. If `model` is given, the source is the line that assigns the
    attribute. A value that is None is missing.
    """
    got, expected = (text if isinstance(text, str) else words_for(text) for text in (got, expected))
    fix = fix or _FIXES[rule].format(name=path.rsplit("/", 1)[-1] or "count")
    source = source if model is None else line_of_assignment(model, path)
    return Finding(rule, path, message, where, got, expected, fix, source, is_warning)


def diagnosed(difference: Difference, model: Any, where: str) -> Finding:
    """Returns the finding for a value that differs from the value after plain calls."""
    path, expected, got = difference.path, difference.expected, difference.got
    fix = ""
    if got is not None and got.value is LEAKED:
        rule, message = "lost-update", "is a tracer after the call, which no later call can use."
    elif {leaf.kind for leaf in (expected, got) if leaf is not None} == {"attribute"}:
        rule, message = (
            "python-counter",
            "is a plain attribute that calls change; compiled code changes it only while it is traced.",
        )
    elif expected is not None and got is not None and expected.kind != got.kind:
        rule, message = "replaced-variable", f"is a Variable in one run and an {got.kind} in the other."
    elif difference.is_unchanged:
        rule, message = "lost-update", "keeps its old value: the update is lost."
        if got is None:
            message, fix = "is created by a call, but does not exist after the call.", _FIX_OF_MADE
        elif expected is not None and expected.kind == "array":
            message = "keeps its old value: a bare array is state in graph mode only."
            fix = _FIXES["python-counter"].format(name=path.rsplit("/", 1)[-1])
    elif difference.is_overcounted:
        rule, message = "counted-twice", "changes by more than one execution of the program changes it."
    else:
        rule, message = "differs", "differs from the value after plain calls."
    return finding_of(rule, path, message, where, got=got, expected=expected, model=model, fix=fix)


def diagnosed_outputs(
    expected: list[tuple[Any, ...]], got: list[tuple[Any, ...]], where: str, frozen: str | None
) -> Finding:
    """Returns the finding for outputs that differ from plain calls; `frozen` names state that the outputs ignore."""
    wrong = [
        not all(np.array_equal(x, y) for x, y in zip(*pair, strict=False)) for pair in zip(expected, got, strict=True)
    ]
    k = wrong.index(True) if True in wrong else 0
    rule, path = ("frozen-value", frozen) if frozen else ("differs", OUTPUT)
    message = f"of call {k + 1} differs from the output of a plain call."
    if frozen:
        message = "is read once: later calls use the value of the first call."
    got_words, due_words = (", ".join(_short(x) for x in outputs[k]) for outputs in (got, expected))
    return finding_of(rule, path, message, where, got=got_words, expected=due_words)


def _short(value: Any) -> str:
    value = np.asarray(value)
    return str(value.tolist()) if value.size <= 4 else f"{value.dtype}{list(value.shape)}, first {value.flat[0]}"


def explained(error: BaseException, model: Any, start: Snapshot, where: str, *, shared: bool) -> Finding:
    """Returns the finding for an error that a transformation raises, although plain calls do not.

    Args:
        error: The error.
        model: A new model, by which attributes are named.
        start: The values of the new model.
        where: The transformation.
        shared: Whether the mode refuses a Variable that has two names in the model.
    """
    source = line_of_error(error)
    path = _path_in(source, start)
    got = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
        rule, message = "host-sync", "a value is read on the host in the middle of the step."
    elif isinstance(error, flax.errors.TraceContextError) and not isinstance(error, TallaxError):
        rule, message = (
            "lost-update",
            "is written inside a transformation that does not take the module as an argument.",
        )
    elif "uplicate" in got and shared and (pairs := nnx.find_duplicates(model)):
        names = ["/".join(map(str, name)) for name in pairs[0]]
        return finding_of(
            "shared-variable",
            names[0],
            f"has {len(names)} names, {', '.join(names)}: Flax accepts such a model in graph mode only.",
            where,
            got=got,
            fix="store it once, and pass it as an argument to the code that needs it",
            is_warning=True,
        )
    elif isinstance(error, jax.errors.UnexpectedTracerError):
        rule, message = "frozen-value", "a value of one trace is used in a later trace."
    else:
        rule, message = "raises", "raises an error, but plain calls do not."
    return finding_of(rule, path, message, where, got=got, source=source)


def _path_in(source: str, start: Snapshot) -> str:
    """Returns the path of the attribute that a line of source mentions, or the attribute's name if it has no path."""
    own = re.findall(r"self\.(\w+)", source)
    words = re.findall(r"\b([a-z_]\w*)(\()?", source.partition(": ")[2])
    # `loss.mean()` calls a method of an array, and does not name an attribute `mean` of the model.
    for name in (*own, *(word for word, call in words if not (call and hasattr(jax.Array, word)))):
        for path, leaf in start.items():
            if (leaf.kind != "attribute" or isinstance(leaf.value, Opaque)) and name in path.split("/"):
                return path
    return own[0] if own else ""


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [""])[0][:200]
