# SPDX-License-Identifier: Apache-2.0
"""Static arguments of a compiled step are those of `nnx.jit`, and errors name the user's parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax


def made():
    return nnx.Dict(count=tallax.Counter(), weight=nnx.Param(jnp.ones(2)))


def run(model, x, mode, scale=2, *, training=True):
    """Uses every argument but `x` as a Python value."""
    model.count += scale if mode == "train" else 100
    model.weight[...] = model.weight[...] * x if training else model.weight[...] + x
    return [model.weight[...].sum()] * scale


CALLS = [
    (("train",), {}),
    (("eval", 3), {}),
    (("train", 2), {"training": False}),
    (("train",), {}),
    (("eval",), {"scale": 3}),
    (("eval", 1), {"training": True}),
    (("train", 2), {"training": False}),
]

ONE_WAY = {
    "names": {"static_argnames": ("mode", "scale", "training")},
    "numbers": {"static_argnums": (2, 3), "static_argnames": "training"},
    "from-the-end": {"static_argnums": (-1, -2), "static_argnames": ["training"]},
}


@pytest.mark.parametrize("static", ONE_WAY.values(), ids=ONE_WAY)
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
def test_static_arguments_are_those_of_nnx_jit(static, graph):
    """Results and state are bit-equal to `nnx.jit`, by position and by name, with one trace per combination."""
    model, other = made(), made()
    plain = nnx.jit(run, static_argnames=("mode", "scale", "training"))
    x = jnp.float32(1.5)
    with tallax.compile_step(run, model, graph=graph, **static) as step:
        for args, options in CALLS:
            np.testing.assert_array_equal(step(x, *args, **options), plain(other, x, *args, **options))
        assert step.traces == 5
    assert int(model.count) == int(other.count)
    np.testing.assert_array_equal(model.weight[...], other.weight[...])


def test_numbers_count_the_bound_objects():
    """As `jax.jit` counts: the first argument of a call comes behind the objects."""
    model, other = made(), made()

    def two(model, other, x, mode):
        model.count += 1
        return x if mode == "a" else -x

    step = tallax.compile_step(two, model, other, static_argnums=3)
    assert (float(step(1.0, "a")), float(step(1.0, "b")), float(step(1.0, mode="a"))) == (1.0, -1.0, 1.0)


def test_arguments_in_a_star():
    """Positions reach into `*args`, and names into `**options`."""

    def several(model, *xs, **options):
        return xs[0] if xs[1] == options["same"] else -xs[0]

    step = tallax.compile_step(several, made(), static_argnums=2, static_argnames="same")
    assert (float(step(1.0, "a", same="a")), float(step(1.0, "b", same="a"))) == (1.0, -1.0)


def test_equal_values_of_other_types_are_traced_apart():
    """1, 1.0 and True are equal, but not the same to a function."""
    step = tallax.compile_step(lambda model, kind: jnp.asarray(kind), made(), static_argnames="kind")
    assert [step(kind).dtype.name for kind in (1, True, 1.0, 1, True)] == ["int32", "bool", "float32", "int32", "bool"]
    assert step.traces == 3


def test_static_arguments_of_a_scan():
    """They have no axis of steps."""
    model, other = made(), made()
    xs = jnp.array([0.5, 2.0, 3.0])
    plain = nnx.jit(run, static_argnames=("mode", "scale"))
    with tallax.compile_step(run, model, static_argnames=("mode", "scale", "training")) as step:
        (losses,) = step.scan(xs, "train", 1)
        assert step.traces == 1
    assert losses.tolist() == [float(plain(other, x, "train", 1)[0]) for x in xs]
    assert int(model.count) == int(other.count) == 3


def test_a_partial_of_a_function():
    """Its parameters are those that are left."""
    step = tallax.compile_step(functools.partial(run, scale=1), made(), static_argnames=("mode", "training"))
    assert len(step(1.0, "train")) == 1


def branching(model, x, training):
    model.count += 1
    return x if training else -x


def shaped(model, x, n):
    return jnp.zeros(n) + x


def looping(model, x, n):
    return sum(x for _ in range(n))


def within(model, x, training):
    return nnx.grad(lambda weight: (weight[...] * (x if training else -x)).sum())(model.weight)[...]


NAMED = {
    "string": (run, (1.0, "train"), {}, r"^mode: .*arrays.*\n.*str \('train'\)\n.*static_argnames=\(\"mode\",\)"),
    "string-by-name": (run, (1.0,), {"mode": "train"}, r"^mode: .*\n.*\n.*static_argnames=\(\"mode\",\)"),
    "flag": (branching, (1.0, True), {}, r"^training: .*\n.*bool \(True\)(.|\n)*static_argnames=\(\"training\",\)"),
    "flag-in-grad": (within, (jnp.ones(2), True), {}, r"^training: (.|\n)*static_argnames=\(\"training\",\)"),
    "shape": (shaped, (1.0, 3), {}, r"^n: (.|\n)*static_argnames=\(\"n\",\)"),
    "range": (looping, (jnp.ones(2), 3), {}, r"^n: (.|\n)*static_argnames=\(\"n\",\)"),
    "in-a-dict": (branching, ({"a": "b"}, True), {}, r"^x\['a'\]: (.|\n)*an argument of its own"),
    "object": (branching, (object(), True), {}, r"^x: (.|\n)*static_argnames=\(\"x\",\)"),
    "text-array": (branching, (np.array(["a"]), True), {}, r"^x: "),
    "star": (lambda model, *xs: xs[0], (1.0, "a"), {}, r"^xs\[1\]: (.|\n)*static_argnums=\(2,\)"),
}


@pytest.mark.parametrize("name", NAMED)
def test_errors_name_the_argument(name):
    """A value that is not an array, or one that Python needs, is named as the user names it; the state stays."""
    function, args, options, message = NAMED[name]
    model = made()
    step = tallax.compile_step(function, model)
    with pytest.raises(tallax.InvalidTypeError, match=message) as caught:
        step(*args, **options)
    assert not any(word in str(caught.value) for word in ("_once", "_many", "_pure", "batch", "options["))
    step.sync()
    assert int(model.count) == 0


def test_errors_of_jax_name_the_argument_and_the_function():
    """A branch on an array is JAX's own error, about the user's function and parameter."""

    def choose(model, x):
        return x if x.sum() > 0 else -x

    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"choose at .*test_step_static") as caught:
        tallax.compile_step(choose, made())(jnp.ones(2))
    assert "argument x." in str(caught.value)


def test_a_scan_of_a_scalar():
    """Named, with both remedies."""
    with pytest.raises(tallax.InvalidValueError, match=r"^training: step\.scan(.|\n)*static_argnames") as caught:
        tallax.compile_step(branching, made()).scan(jnp.ones(3), True)
    assert "jnp.full" in str(caught.value)


@pytest.mark.parametrize("value", [[1], np.ones(2), jnp.ones(2), {"a": 1}], ids=["list", "numpy", "jax", "dict"])
def test_static_values_must_be_hashable(value):
    """An array or a list is named; nothing is run."""
    model = made()
    step = tallax.compile_step(run, model, static_argnames="mode")
    with pytest.raises(tallax.InvalidTypeError, match=r"^mode: is a static argument, which must be hashable"):
        step(1.0, value)
    step.sync()
    assert int(model.count) == 0


WRONG = {
    "unknown": ({"static_argnames": "made"}, tallax.InvalidValueError, r"^static_argnames: run has no parameter"),
    "too-far": ({"static_argnums": 5}, tallax.InvalidValueError, r"^static_argnums: run has no parameter"),
    "object": ({"static_argnames": "model"}, tallax.InvalidValueError, r"^static_argnames: a bound object(.|\n)*model"),
    "object-number": ({"static_argnums": 0}, tallax.InvalidValueError, r"^static_argnums: a bound object(.|\n)*model"),
    "no-name": ({"static_argnames": 3}, tallax.InvalidTypeError, r"^static_argnames: takes names"),
    "no-number": ({"static_argnums": "mode"}, tallax.InvalidTypeError, r"^static_argnums: takes positions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_static_parameters_that_there_are_not(name):
    """They are refused when the step is made."""
    static, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        tallax.compile_step(run, made(), **static)
