# SPDX-License-Identifier: Apache-2.0
"""Random programs over tallax's state, as text: what a step does, and what happens between steps.

A `Program` is Python source, so what a failure prints can be run. Its structure is written with the functions of
`Device` (`cond`, `scan`, `grad`, ...), which are those of Flax; the same source runs with `Oracle` on Python integers,
where a counter is a number and a loop is a loop.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import tallax

MOST, WORD, INT32 = 2**64 - 1, 2**32, 2**31 - 1
STARTS = [0, 1, 2**31 - 3, 2**32 - 4, 2**53, 2**64 - 5]
AMOUNTS = [0, 1, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40]
X = [0, 1, 2, 5, 2**31 - 1]  # what batches are made of


@dataclass(frozen=True)
class Program:
    """Source of `step(m, x)` and of `drive(m, step, see)`, and what the counters start at."""

    step: str
    drive: str
    starts: tuple[int, int, tuple[int, int, int]]
    fields: tuple[str, ...]

    def __repr__(self):
        c, d, v = self.starts
        return f"\n# c={c} d={d} v={list(v)}; fields: {' '.join(self.fields)}\n{self.step}\n{self.drive}"

    @property
    def is_known_to_oracle(self):
        """Whether the oracle can run it."""
        return "on_devices" not in self.step


# --- what a step may do -----------------------------------------------------------------------------------------------

amounts = st.sampled_from(AMOUNTS)
entries = st.sampled_from(["x[0]", "x[1]", "x[2]"])
scalars = st.sampled_from(["m.c", "m.d"])
places = st.sampled_from(["0", "1", "2", "k % 3"])

_COUNTER = st.one_of(
    st.builds("{} += {}".format, scalars, amounts),
    st.builds("{}.increment({})".format, scalars, entries),
    st.builds("{}.increment({}.astype(jnp.uint8))".format, scalars, entries),
    st.builds("{}.increment(m.v[{}])".format, scalars, places),
    st.sampled_from(["m.c.increment(m.d)", "m.d.increment(m.c)", "m.v.increment(m.c)", "m.v.increment(m.v)"]),
    st.builds("{}.count(x > {})".format, scalars, st.integers(0, 2)),
    st.builds("{}.count(x)".format, scalars),
    st.builds("m.v += {}".format, amounts),
    st.sampled_from(["m.v.increment(x)", "m.v.count(x > 1)", "m.v.count(jnp.stack([x, x, x]))", "m.v.increment(x[0])"]),
)
_WRITES = st.one_of(
    st.builds("{}.set({})".format, scalars, st.sampled_from(STARTS)),
    st.builds("{}.set({})".format, scalars, entries),
    st.sampled_from(["m.c.set(m.d)", "m.d.set(m.c)", "m.v.set(m.c)", "m.v.set(x)", "swap(m.c, m.d)"]),
    st.sampled_from(["m.c.reset()", "m.d.reset()", "m.v.reset()"]),
    st.builds("{}.value += {}".format, scalars, st.sampled_from([0, 1, 3, 2**31 - 1])),
    st.builds("{}[...] += {}".format, scalars, st.integers(0, 3)),
    st.builds("m.v[{}] = {}".format, places, entries),
    st.builds("m.v[{}] = {}".format, places, st.integers(0, 9)),
    st.builds("m.v[{}] += {}".format, places, st.sampled_from([0, 1, 3, 2**31 - 1])),
)
_READ = st.one_of(
    st.builds("{}.value".format, scalars),
    st.builds("{}.every({})".format, scalars, st.sampled_from([1, 3, 100])),
    st.builds("m.v[{}]".format, places),
    st.sampled_from(["m.c == m.d", "m.v.every(2)[1]", "m.v.value[2]", "k"]),
)
_READS = st.builds("m.t[...] = mix(m.t[...], {})".format, _READ)
_STATISTICS = {
    "r": ["m.r.update(x > 1)", "m.r.update(x > 1, where=x < 5)", "m.r.reset()"],
    "q": ["m.q.update(x > 0)", "m.r.merge(m.q)", "m.q.merge(m.r)"],
    "h": ["m.h.update(f(x))", "m.h.update(f(x), where=x > 1)", "m.h.reset()"],
    "g": ["m.g.update(f(x))", "m.h.merge(m.g)"],
    "l": ["m.l.update(f(x))", "m.l.reset()"],
    "n": ["m.n.update(f(x))", "m.n.reset()"],
    "e": ["m.e.update(f(x))", "m.e.reset()"],
    "z": ["m.z.update(f(x))", "m.z.reset()"],
    "a": ["m.a.update(x > 1)", "m.a.reset()"],
    "b": ["m.b[...] = m.b[...] + f(x)", "m.b[k % 3] = 1.5", "m.b[0] += 2.0"],
    "s": ["m.s(m.c)", "m.s(m.d)", "m.s.pin(3.0)", "m.s.release()"],
}
_NEEDS = {"q": "r", "g": "h"}
_PREDICATES = st.one_of(
    st.builds("{} > {}".format, entries, st.integers(0, 4)),
    st.builds("k > {}".format, st.integers(0, 1)),
    st.builds("{}.every({})".format, scalars, st.sampled_from([2, 3])),
    st.sampled_from(["m.c.value > m.d.value", "m.c == m.d", "m.v[1] > 2"]),
)
_CHOICES = st.sampled_from(["x[0] % 3", "x[1] % 3", "k % 3", "m.c.value % 3"])
_ON_DEVICES = st.one_of(  # `x` differs between the devices there, and what is written must not
    st.builds("{}.increment({}, axis_name=())".format, scalars, amounts),
    st.builds("{}.increment({})".format, scalars, entries),
    st.builds("{}.count(x > {})".format, scalars, st.integers(0, 2)),
    st.sampled_from(["m.v.increment(x)", "m.c.reset()", "m.c.set(7)", "m.d.set(m.c)", "m.v[1] = 4", "swap(m.c, m.d)"]),
    st.sampled_from(["m.t[...] = mix(m.t[...], m.c.value)", "m.t[...] = mix(m.t[...], m.v[1])"]),
)
_BLOCKS = [
    "cond", "cond", "cond", "switch", "switch", "scan", "fori", "loop", "remat", "jit", "grad",
    "lanes", "layers", "undo", "undo_if", "on_devices",
]  # fmt: skip


@st.composite
def programs(draw):
    """Draws a program."""
    extra = draw(st.lists(st.sampled_from(sorted(_STATISTICS)), max_size=2, unique=True))
    extra += [_NEEDS[name] for name in extra if name in _NEEDS and _NEEDS[name] not in extra]
    functions = iter(range(1000))
    kinds = [_COUNTER, _COUNTER, _WRITES, _READS]
    statistics = [st.sampled_from(_STATISTICS[name]) for name in extra]

    def block(statements, depth, *, inside=()):
        lines = []
        for _ in range(draw(st.integers(1, 3))):
            if depth and draw(st.booleans()):
                lines += structure(depth - 1, inside)
            else:
                lines.append(draw(draw(st.sampled_from(statements))))
        return lines

    def function(statements, depth, inside):
        name = f"f{next(functions)}"
        return name, [f"def {name}(m, x, k):", *_indented(block(statements, depth, inside=inside))]

    def structure(depth, inside):
        kind = draw(st.sampled_from([kind for kind in _BLOCKS if not (inside and kind in inside)]))
        own = kinds if "lanes" in inside else [*kinds, *statistics]
        if kind in ("undo", "undo_if"):
            end = "undo(m, saved)" if kind == "undo" else f"undo(m, saved, if_={draw(_PREDICATES)})"
            return ["saved = snapshot(m)", *block(own, 0), end]
        if kind == "on_devices":
            name, lines = function([_ON_DEVICES], 0, inside)
            return [*lines, f"on_devices({name}, m, x, k)"]
        if kind in ("lanes", "layers"):
            name, lines = function(kinds, min(depth, 1), ("lanes", "layers", "on_devices", "undo", "undo_if", "grad"))
            return [*lines, f"{kind}({name}, m.w, x, k)"]
        if kind in ("cond", "switch"):
            parts = [function(own, depth, inside) for _ in range(2 if kind == "cond" else 3)]
            names = ", ".join(name for name, _ in parts)
            call = f"cond({draw(_PREDICATES)}, {names}" if kind == "cond" else f"switch({draw(_CHOICES)}, [{names}]"
            return [line for _, lines in parts for line in lines] + [f"{call}, m, x, k)"]
        # JAX has no derivative of a loop whose end is not known.
        name, lines = function(own, depth, (*inside, "loop") if kind == "grad" else inside)
        if kind in ("scan", "fori", "loop"):
            times = str(draw(st.integers(0, 4))) if kind != "loop" else draw(st.sampled_from(["3", "x[0] % 4"]))
            return [*lines, f"{kind}({times}, {name}, m, x, k)"]
        return [*lines, f"{kind}({name}, m, x, k)"]

    body = block([*kinds, *statistics], draw(st.integers(1, 3)))
    returned = draw(st.sampled_from(["m.t[...]", "m.t[...], m.c.value", "m.v.value", "snapshot(m)"]))
    step = "\n".join(["def step(m, x, k=np.int32(0)):", *_indented([*body, f"return {returned}"])])
    drive = "\n".join(["def drive(m, step, see):", *_indented(draw(st.lists(_EVENTS, min_size=1, max_size=5)))])
    starts = draw(st.sampled_from(STARTS)), draw(st.sampled_from(STARTS))
    return Program(step, drive, (*starts, tuple(draw(st.tuples(*[st.sampled_from(STARTS)] * 3)))), tuple(extra))


def _indented(lines):
    return [textwrap.indent(line, "    ") for line in lines]


# --- what happens between steps ---------------------------------------------------------------------------------------

_BATCH = st.lists(st.sampled_from(X), min_size=3, max_size=3)
_EVENTS = st.one_of(
    st.builds("see(step(batch({})), step.counts())".format, _BATCH),
    st.builds("see(step(batch({})), step.counts())".format, _BATCH),
    st.builds("see(step.scan(batch({})), step.counts())".format, st.lists(_BATCH, min_size=1, max_size=3)),
    st.builds("{} += {}".format, scalars, amounts),
    st.builds("{}.set({})".format, scalars, st.sampled_from(STARTS)),
    st.sampled_from(["m.v.reset()", "m.v[1] = 5", "m.c.set(m.d)", "m.v.increment(m.c)", "m.c.value += 1"]),
    st.sampled_from(["see(int(m.c))", "see(np.asarray(m.v))", "see(m.d.value)"]),
    st.sampled_from(["step.sync()", "see(step.counts())"]),
)


# --- what the source is run with --------------------------------------------------------------------------------------


def _schedule(count):
    return 1.0 + (count % 5).astype(jnp.float32) if hasattr(count, "astype") else 1.0 + float(count % 5)


_MAKE = {
    "r": lambda: tallax.statistics.Rate(shape=3),
    "q": lambda: tallax.statistics.Rate(shape=3),
    "h": lambda: tallax.statistics.Histogram(0.0, 4.0, bins=3),
    "g": lambda: tallax.statistics.Histogram(0.0, 4.0, bins=3),
    "l": lambda: tallax.statistics.LogHistogram(0.5),
    "n": lambda: tallax.statistics.Moments(shape=3),
    "e": lambda: tallax.statistics.Ema(0.5, shape=3),
    "z": lambda: tallax.statistics.Extrema(shape=3),
    "a": lambda: tallax.statistics.Activity(3, window=2),
    "b": lambda: tallax.Buffer(np.zeros(3, np.float32)),
    "s": lambda: tallax.ScheduledValue(_schedule),
}


def _counts(c=0, d=0, v=(0, 0, 0)):
    m = nnx.Dict(c=tallax.Counter(c), d=tallax.Counter(d), v=tallax.Counter(shape=3))
    m.v.set(np.array(v, np.uint64))
    m.t = nnx.Variable(jnp.uint32(1))
    return m


def model_of(program):
    """Returns the model that a program runs on: counters, a Variable that reads are mixed into, and what it uses."""
    m = _counts(*program.starts)
    m.p = nnx.Param(jnp.float32(2.0))
    m.w = nnx.vmap(lambda _: _counts(), in_axes=0, out_axes=0)(jnp.arange(2))
    for name in program.fields:
        m[name] = _MAKE[name]()
    return m


def _mix(t, value):
    return t * jnp.uint32(31) + jnp.asarray(value).astype(jnp.uint32)


def _swap(left, right):
    mine, other = left.get_raw_value(), right.get_raw_value()
    left.set_raw_value(other)
    right.set_raw_value(mine)


def _scan(times, body, m, x, k):
    def one(m, k):
        body(m, x, k)
        return m, m.t[...]

    nnx.scan(one, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(m, jnp.arange(times))


def _fori(times, body, m, x, k):
    def one(k, m):
        body(m, x, k)
        return m

    nnx.fori_loop(0, times, one, m)


def _loop(times, body, m, x, k):
    def one(carry):
        k, m = carry
        body(m, x, k)
        return k + 1, m

    nnx.while_loop(lambda carry: (carry[0] < times) & (carry[1].t[...] != 0), one, (jnp.int32(0), m))


def _grad(body, m, x, k):
    def loss(m):
        body(m, x, k)
        return m.p[...] ** 2

    tallax.value_and_grad(loss)(m)


def _lanes(body, w, x, k):
    nnx.vmap(lambda w, x: body(w, x, k), in_axes=(0, 0))(w, jnp.stack([x, x[::-1]]))


def _layers(body, w, x, k):
    nnx.scan(lambda w, x: body(w, x, k), in_axes=(0, 0), out_axes=0)(w, jnp.stack([x, x[::-1]]))


def _snapshot(m):
    return nnx.as_pure(nnx.state(m))


def _undo(m, saved, if_=None):
    if if_ is not None:
        saved = jax.tree.map(lambda new, old: jnp.where(if_, old, new), _snapshot(m), saved)
    nnx.update(m, saved)


def _on_devices(body, m, x, k):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    graphdef, state = nnx.split(m)

    def each(state, x, k):
        m = nnx.merge(graphdef, state)
        body(m, x[0], k)
        return nnx.state(m)

    run = jax.shard_map(each, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
    out = jax.jit(run)(state, jnp.stack([x, x % 2]), jnp.asarray(k))
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(out)):
        out = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), out)  # plain calls go on with one device
    nnx.update(m, out)


DEVICE = {
    "np": np, "jnp": jnp, "nnx": nnx, "mix": _mix, "swap": _swap, "cond": nnx.cond, "switch": nnx.switch,
    "scan": _scan, "fori": _fori, "loop": _loop, "grad": _grad, "lanes": _lanes, "layers": _layers, "undo": _undo,
    "snapshot": _snapshot,    "on_devices": _on_devices, "f": lambda x: (x % 7).astype(jnp.float32),
    "remat": lambda body, *args: nnx.remat(body)(*args), "jit": lambda body, *args: nnx.jit(body)(*args),
    "batch": lambda values: jnp.array(values, jnp.int32),
}  # fmt: skip


def run(program, names):
    """Returns `step` and `drive` of a program, as functions that call what `names` has."""
    scope = dict(names)
    exec(f"{program.step}\n{program.drive}", scope)
    return scope["step"], scope["drive"]


# --- the oracle: Python's integers ------------------------------------------------------------------------------------


class Counts:
    """A `Counter`, or an array of three, in Python integers."""

    def __init__(self, *counts, is_scalar):
        self.counts, self.is_scalar = list(counts), is_scalar

    def increment(self, by):
        by = self._numbers(by)
        self.counts = [min(count + n, MOST) for count, n in zip(self.counts, by, strict=True)]

    def count(self, events):
        events = np.asarray(events)
        columns = events.reshape(-1, len(self.counts)) if not self.is_scalar else events.reshape(-1, 1)
        self.increment([sum(map(int, column)) for column in columns.T])

    def __iadd__(self, by):
        self.increment(by)
        return self

    def set(self, n):
        self.counts = list(self._numbers(n))

    def reset(self):
        self.set(0)

    def every(self, n):
        result = [count % n == 0 for count in self.counts]
        return result[0] if self.is_scalar else result

    @property
    def value(self):
        return _Saturated(self.counts[0]) if self.is_scalar else [_Saturated(count) for count in self.counts]

    @value.setter
    def value(self, written):
        self[...] = written

    def __getitem__(self, k):
        return self.value if k is ... else _Saturated(self.counts[int(k)])

    def __setitem__(self, k, n):
        k = 0 if k is ... else int(k)
        # An int32 array of 2**31 - 1 over a count beyond is taken for what was read there, and changes nothing.
        if not (isinstance(n, np.int32) and n == INT32 <= self.counts[k]):
            self.counts[k] = n.exact if isinstance(n, _Saturated) else int(n)

    def __eq__(self, other):
        return self.counts == other.counts

    __hash__ = None

    def __int__(self):
        return self.counts[0]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.counts, np.uint64)

    def _numbers(self, n):
        if isinstance(n, Counts):
            n = n.counts
        numbers = [int(each) for each in np.ravel(np.asarray(n, object))]
        return numbers * (len(self.counts) // len(numbers))


class _Saturated(int):
    """The result of a read, int32; but a sum that is written back is exact."""

    def __new__(cls, exact):
        self = super().__new__(cls, min(exact, INT32))
        self.exact = exact
        return self

    def __add__(self, n):
        return _Saturated(min(self.exact + n, MOST))

    def astype(self, _):
        return int(self)


class _Number:
    """The Variable that reads are mixed into."""

    def __init__(self, n):
        self.n = n

    def __getitem__(self, _):
        return self.n

    def __setitem__(self, _, n):
        self.n = n


class _Ignored:
    """A statistic, of which the oracle knows nothing."""

    def __getattr__(self, _):
        return lambda *_, **__: None

    def __call__(self, *_):
        return None

    def __getitem__(self, _):
        return 0.0

    def __setitem__(self, *_):
        pass


def _plain(c=0, d=0, v=(0, 0, 0)):
    counts = {"c": Counts(c, is_scalar=True), "d": Counts(d, is_scalar=True), "v": Counts(*v, is_scalar=False)}
    return SimpleNamespace(**counts, t=_Number(1))


def oracles_model_of(program):
    """Returns the model of a program, in Python integers."""
    m = _plain(*program.starts)
    m.w = [_plain(), _plain()]
    for name in program.fields:
        setattr(m, name, _Ignored())
    return m


def everything(m):
    """Returns all numbers of the oracle's model, those of the lanes too."""
    lanes = [everything(lane) for lane in getattr(m, "w", [])]
    return [*m.c.counts, *m.d.counts, *m.v.counts, m.t.n, *lanes]


def _restored(m, numbers):
    (m.c.counts[0], m.d.counts[0], *v, m.t.n), lanes = numbers[:6], numbers[6:]
    m.v.counts = v
    for lane, saved in zip(getattr(m, "w", []), lanes, strict=True):
        _restored(lane, saved)


def _undone(m, saved, if_=True):
    if if_:
        _restored(m, saved)


def _swapped(left, right):
    left.counts, right.counts = right.counts, left.counts


def _repeated(times, body, m, x, k):
    for each in range(int(times)):
        body(m, x, np.int32(each))


def _repeated_while(times, body, m, x, k):
    for each in range(int(times)):
        if m.t.n == 0:
            break
        body(m, x, np.int32(each))


def _in_lanes(body, w, x, k):
    for lane, values in zip(w, (x, x[::-1]), strict=True):
        body(lane, values, k)


def _called(body, *args):
    body(*args)


ORACLE = {
    "np": np, "jnp": np, "snapshot": everything, "mix": lambda t, value: (t * 31 + int(value)) % WORD,
    "swap": _swapped, "cond": lambda p, yes, no, *args: (yes if p else no)(*args),
    "switch": lambda choice, bodies, *args: bodies[int(choice)](*args), "scan": _repeated, "fori": _repeated,
    "loop": _repeated_while, "grad": _called, "lanes": _in_lanes, "layers": _in_lanes, "undo": _undone,
    "f": lambda x: x, "remat": _called, "jit": _called, "batch": lambda values: np.array(values, np.int32),
}  # fmt: skip
