# SPDX-License-Identifier: Apache-2.0
"""The checks on copies of a model. If pickle cannot copy the model, they find the attribute that it rejects."""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking._check_results import Results, reported
from tallax.checking._diagnosis import finding_of
from tallax.checking._program import Program, Reference
from tallax.checking._report import Finding
from tallax.checking._snapshot import Leaf, differences, snapshot


def copies(program: Program, reference: Reference) -> Results:
    """A copy equals the model, continues as the model does, and does not change the model."""
    for name, make_copy in _COPIES.items():
        *first, last = program.batches
        model = program.model_after(len(first))
        before = snapshot(model)
        empty = [path for path, leaf in before.items() if leaf.variable and np.size(leaf.value) == 0]
        if make_copy is _through_orbax and empty:  # Orbax reports it in a background thread, with a traceback
            yield from reported(name, [_refused(path, before[path]) for path in empty])
            continue
        try:
            copied = make_copy(model, program)
        except Exception as error:
            yield from reported(name, [_uncopied(name, error, model)])
            continue
        missed = differences(reference.start, before, snapshot(copied))
        when = name
        if not missed:
            when = f"a call after {name}"
            program.plain_call(copied, last)
            missed = differences(reference.start, before, snapshot(model))
            if missed:
                when = f"calling the copy made by {name} changed the model"
            else:
                missed = differences(reference.start, reference.end, snapshot(copied), reference.noisy)
        yield from reported(
            name,
            [
                finding_of(
                    "round-trip",
                    difference.path,
                    "is not preserved by a copy.",
                    when,
                    got=difference.got,
                    expected=difference.expected,
                    model=model,
                )
                for difference in missed
            ],
        )


def _uncopied(name: str, error: Exception, model: Any) -> Finding:
    first = str(error).strip().splitlines() or [""]
    path, message, fix = "", f"{name} fails.", "no lambdas, local functions or open files on the module"
    if name == "pickle" and (culprit := next(_unpicklable(model), None)):
        path, what, fix = culprit
        message = f"{what}, which pickle cannot copy."
    return finding_of(
        "round-trip",
        path,
        message,
        name,
        got=f"{type(error).__name__}: {first[0][:200]}",
        fix=fix,
        # A warning only: the error is not silent, and even Flax's LSTMCell cannot be pickled.
        is_warning=name in ("pickle", "deepcopy"),
    )


def _unpicklable(model: Any) -> Iterator[tuple[str, str, str]]:
    """Yields the path, the value and the fix of each attribute that pickle rejects."""
    for path, node in nnx.iter_graph(model, graph=True):
        name = "/".join(map(str, path))
        if isinstance(node, nnx.Pytree):
            if not _pickles(type(node)):
                yield name, f"is of the class {type(node).__qualname__}", "define the class at the top of a module"
        elif isinstance(node, nnx.Variable):
            for key, value in node.get_metadata().items():
                if not _pickles(value):
                    yield f"{name}/{key}", f"holds {_called(value)}", _fix_for(value)
        elif not isinstance(node, jax.Array | np.ndarray) and not _pickles(node):
            culprit = _within(node)
            yield name, f"holds {_called(culprit)}", _fix_for(culprit)


def _pickles(value: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return False
    return True


def _within(value: Any) -> Any:
    """Returns the part of a partial function or of a container that cannot be pickled, or the value itself."""
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, dict):
        parts = list(value.values())
    else:
        parts = list(value) if isinstance(value, list | tuple | set) else []
    culprits = [part for part in parts if not _pickles(part)]
    return _within(culprits[0]) if culprits else value


def _called(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if name is None:
        return f"a {type(value).__name__}"
    package = str(getattr(value, "__module__", "")).partition(".")[0]
    return f"{name} of {package}" if package else str(name)


def _fix_for(value: Any) -> str:
    if callable(value) and "<l" not in getattr(value, "__qualname__", ""):  # JAX wraps its functions in objects
        return "a function at the top of your module that calls it: def activation(x): return jax.nn.relu(x)"
    if callable(value):
        return "define the function at the top of a module; if another library makes it, save nnx.state(model) instead"
    return "create it where it is used, and store only its inputs on the module"


def _refused(path: str, leaf: Leaf) -> Finding:
    return finding_of(
        "round-trip",
        path,
        "is an empty array, which Orbax refuses to save.",
        "checkpoint",
        got=leaf,
        expected="at least one entry",
        fix="create the Variable when there is data for it, or start with one row and a count of the rows in use",
    )


def _into_a_new_model(model: Any, program: Program) -> Any:
    new = program.make()
    state = jax.tree.map(_as_saved, nnx.state(model))
    nnx.update(new, state)
    return new


def _as_saved(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jax.device_put(np.asarray(leaf))  # compiles nothing


def _through_orbax(model: Any, program: Program) -> Any:
    import orbax.checkpoint as ocp

    new = program.make()
    state = jax.tree.map(jnp.asarray, nnx.state(model))
    if not jax.tree.leaves(state):  # Orbax refuses to save an empty tree, and reports it in a background thread
        return new
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), jax.tree.map(jnp.asarray, nnx.state(new))
    )
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder) / "state"
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        # Orbax commits arrays to a device, for which each operation would be compiled again.
        nnx.update(new, jax.tree.map(_as_saved, checkpointer.restore(path, target)))
    return new


_COPIES: dict[str, Callable[[Any, Program], Any]] = {
    "clone": lambda model, program: nnx.clone(model),
    "deepcopy": lambda model, program: copy.deepcopy(model),
    "pickle": lambda model, program: pickle.loads(pickle.dumps(model)),
    "split and merge": lambda model, program: nnx.merge(*nnx.split(model), copy=True),
    "state into a new model": _into_a_new_model,
    "checkpoint": _through_orbax,
}
