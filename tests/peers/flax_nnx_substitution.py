# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: Flax's tests see tallax's Variables under the names of Flax's own.

`tests/peers/flax_nnx.py` loads it. In each test module the name `nnx` is replaced by `Names`, which returns stand-ins
for `nnx.Variable`, `nnx.BatchStat`, `nnx.Cache` and `nnx.Param`, and Flax's own objects for all other names. The same
is done in the modules of Flax's layers (`flax.nnx.nn`), for this process alone.

A stand-in is a subclass of `tallax.Buffer`. Calling it returns a Buffer of itself; a Counter, if counters are asked for
and the value is made of non-negative integers; or Flax's own Variable, if the value is not an array, which no tallax
variable holds. `isinstance` and filters accept all three. `nnx.Param` is replaced only in tests that neither
differentiate nor read Linen's parameters, and never by a Counter: its values are weights.
"""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import re
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax

REPLACE = os.environ.get("TALLAX_PEERS_REPLACE", "")  # "counter", "buffer", or "" for an unchanged run
RECORDS = pathlib.Path(os.environ["TALLAX_PEERS_RECORDS"])
STATE, PARAMETER = ("Variable", "BatchStat", "Cache"), "Param"
# Tests that need Flax's own `nnx.Param`: they differentiate, or read Linen's collection of parameters.
NEEDS_PARAMETERS = re.compile(r"grad|vjp|jvp|[Oo]ptimizer|DiffState|linearize|bridge")

made = {"counters": 0, "buffers": 0}  # by the running test


class StandIn(type(nnx.Variable)):
    """The class of stand-ins: it chooses the class of what a call returns, and accepts all of them as instances."""

    original: type
    counts: bool

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **own: Any) -> StandIn:
        made_class = super().__new__(cls, name, bases, dict(body))
        if not own:  # a class of the test's own, below a stand-in
            base = next(base for base in bases if isinstance(base, StandIn))
            own = {"original": type(base.original)(name, (base.original,), _again(body)), "counts": base.counts}
        for key, value in own.items():
            type.__setattr__(made_class, key, value)
        made_class.counter = type(tallax.Counter)(name, (tallax.Counter,), _again(body))
        return made_class

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], **own: Any):
        super().__init__(name, bases, body)

    def __getitem__(cls, item: Any) -> StandIn:
        return cls

    def __call__(cls, value: Any, **metadata: Any) -> Any:
        if not _is_array(value):
            return cls.original(value, **metadata)
        if not (cls.counts and REPLACE == "counter" and _counts(value)):
            made["buffers"] += 1
            return super().__call__(value, **metadata)
        made["counters"] += 1
        counter = cls.counter(shape=np.shape(value), **metadata)
        counter.set(value)
        return counter

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, (cls.original, cls.counter))

    def __subclasscheck__(cls, other: type) -> bool:
        return super().__subclasscheck__(other) or issubclass(other, (cls.original, cls.counter))


def _again(body: dict[str, Any]) -> dict[str, Any]:
    """Returns the body of a class for a second class: without the cell of `super()`, which belongs to the first."""
    return {key: value for key, value in body.items() if key not in ("__classcell__", "__orig_bases__")}


def _is_array(value: Any) -> bool:
    if isinstance(value, jax.Ref) or getattr(value, "dtype", None) == np.dtype(object):
        return False
    return isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float | complex | nnx.Variable)


def _counts(value: Any) -> bool:
    """Returns whether a value is made of integers from 0 on; a traced one is taken to be, as no one can see it."""
    if isinstance(value, nnx.Variable):
        value = value.get_value()
    dtype = getattr(value, "dtype", np.dtype(type(value)))
    if not jnp.issubdtype(dtype, jnp.integer):
        return False
    return isinstance(value, jax.core.Tracer) or bool(np.all(np.asarray(value) >= 0))


def _stand_in(name: str) -> StandIn:
    made_class = StandIn(name, (tallax.Buffer,), {}, original=getattr(nnx, name), counts=name != PARAMETER)
    made_class.__module__ = made_class.counter.__module__ = __name__
    made_class.__qualname__, made_class.counter.__qualname__ = name, f"{name}.counter"  # pickled by reference
    return made_class


Variable, BatchStat, Cache, Param = map(_stand_in, (*STATE, PARAMETER))


class Names(types.ModuleType):
    """`flax.nnx` to a test module: the stand-ins, and everything else as it is."""

    def __init__(self) -> None:
        super().__init__("flax.nnx")
        self.with_parameters = False

    def __getattr__(self, name: str) -> Any:
        replaced = name in STATE or (name == PARAMETER and self.with_parameters)
        return globals()[name] if replaced else getattr(nnx, name)

    def __reduce__(self) -> str:
        return "names"


names = Names()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    layers = [module for name, module in sys.modules.items() if name.startswith("flax.nnx.nn.")]
    for module in [*layers, *(item.module for item in items)]:
        if REPLACE and getattr(module, "nnx", None) is nnx:
            module.nnx = names


def _record(**entry: Any) -> None:
    with RECORDS.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Written before the test too, so that the test which ends the process is known."""
    names.with_parameters = not NEEDS_PARAMETERS.search(item.nodeid + inspect.getsource(item.function))
    made.update(counters=0, buffers=0)
    _record(test=item.nodeid, outcome="crashed", error="the process ended in this test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    if report.failed or report.skipped or call.when == "call":
        error = ""
        if report.failed and call.excinfo is not None:
            inside = [entry for entry in call.excinfo.traceback if entry.path == item.path]
            line = str(inside[-1].statement) if inside else ""
            error = f"{call.excinfo.typename}: {call.excinfo.value} | at: {' '.join(line.split())}"
        _record(test=item.nodeid, outcome=report.outcome, error=error[:2000], **made)
    return report
