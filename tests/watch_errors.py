# SPDX-License-Identifier: Apache-2.0
"""A network to watch, and every mistake in a call of `tallax.watch`, with its error."""

import jax
import jax.numpy as jnp
from flax import nnx

import tallax


class Layer(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.kernel = nnx.Param(rngs.params.normal((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...][None]


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.up = Layer(width, 2 * width, rngs)
        self.down = Layer(2 * width, width, rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x))) / 10


class Net(nnx.Module):
    """A network of blocks, whose run is described by `how`."""

    def __init__(self, how="loop", width=4, blocks=2):
        rngs = nnx.Rngs(0)
        self.how = how
        self.first = Layer(3, width, rngs)
        if how in ("scan", "stack"):
            make = nnx.split_rngs(splits=blocks)(nnx.vmap(lambda rngs: Block(width, rngs), in_axes=0, out_axes=0))
            self.blocks = make(rngs)
        else:
            self.blocks = nnx.List([Block(width, rngs) for _ in range(blocks)])

    def __call__(self, x):
        x = self.first(x)
        if self.how == "scan":
            return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)
        for block in self.blocks:
            if self.how == "remat":
                x = nnx.remat(lambda block, x: block(x))(block, x)
            elif self.how == "cond":
                x = nnx.cond(x.shape[0] > 0, lambda block, x: block(x), lambda block, x: x, block, x)
            elif self.how == "vmap":  # of a module that all lanes share
                x = nnx.vmap(lambda block, x: block(x[None])[0], in_axes=(None, 0), out_axes=0)(block, x)
            else:
                x = block(x)
        return x


def on_a_mesh():
    model = Net()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    nnx.update(model, jax.device_put(nnx.state(model), jax.NamedSharding(mesh, jax.P())))
    return model


MISTAKES = {
    "no model": (
        lambda _: tallax.watch(jnp.ones(3)),
        tallax.InvalidTypeError,
        "watch: takes a model, an nnx.Module.\n  got:  float32[3] ([1.0, 1.0, 1.0])\n  fix:  tallax.watch(model)",
    ),
    "a glob that matches nothing": (
        lambda _: tallax.watch(Net(), sites="block/*"),
        tallax.InvalidValueError,
        "sites: selects no module of the model.\n  got:       str ('block/*')\n"
        "  expected:  blocks/1, blocks/0, blocks/1/up\n"
        '  fix:       sites="blocks/1"',
    ),
    "a class that is not there": (
        lambda _: tallax.watch(Net(), sites=nnx.Conv),
        tallax.InvalidValueError,
        "sites: the model has no module of the class Conv.\n  got:       Conv\n  expected:  Block, Layer, Net\n"
        "  fix:       sites=Net",
    ),
    "no sites": (
        lambda _: tallax.watch(Net(), sites=3),
        tallax.InvalidTypeError,
        "sites: takes a glob of paths, a module class, a predicate, or a list of these.\n  got:  int (3)\n"
        '  fix:  sites="layers/*/attention", sites=nnx.Linear, or sites=lambda path, module: ...',
    ),
    "twice": (
        lambda _: [tallax.watch(model := Net()), tallax.watch(model)],
        tallax.InvalidValueError,
        "watch: the model or the optimizer is watched already.\n  got:  a second watch\n"
        "  fix:  watch.remove() first, or one watch for everything: sites=[...]",
    ),
    "a statistic of the wrong kind": (
        lambda _: tallax.watch(Net(), statistic=tallax.Counter),
        tallax.InvalidTypeError,
        "statistic: takes a function that makes a statistic.\n  got:  a Counter\n"
        "  fix:  statistic=tallax.statistics.Moments, or lambda: tallax.statistics.Extrema()",
    ),
    "every=0": (
        lambda _: tallax.watch(Net(), every=0),
        tallax.InvalidValueError,
        "every: takes an integer in [1, 2**31 - 1].\n  got:  int (0)\n  fix:  every=10",
    ),
    "a window that does not fit": (
        lambda _: tallax.watch(Net(), every=10, window=25),
        tallax.InvalidValueError,
        "window: must be a multiple of every, since summaries start again in a step that is looked at.\n"
        "  got:  window=25, every=10\n  fix:  window=20",
    ),
    "no optimizer": (
        lambda _: tallax.watch(Net(), updates=True),
        tallax.InvalidTypeError,
        "watch: parameters, gradients and updates are seen in optimizer.update, so it needs the optimizer.\n"
        "  got:  no optimizer\n  fix:  tallax.watch(model, optimizer, gradients=True)",
    ),
    "sites in the place of the optimizer": (
        lambda _: tallax.watch(Net(), "blocks/*"),
        tallax.InvalidTypeError,
        "watch: the second argument is the optimizer.\n  got:  str ('blocks/*')\n"
        '  fix:  tallax.watch(model, sites="layers/*") to choose modules',
    ),
    "nothing": (
        lambda _: tallax.watch(Net(), outputs=False),
        tallax.InvalidValueError,
        "watch: there is nothing to watch.\n  got:  outputs=False\n  fix:  outputs=True, or updates=True",
    ),
    "a stack that is none": (
        lambda _: tallax.watch(Net(), stacks="first"),
        tallax.InvalidValueError,
        "first: is not a stack: the Variables below it do not share a leading axis.\n  got:  leading axes of 3, 4\n"
        "  fix:  stacks= with the path of the module that nnx.vmap made",
    ),
    "stacks of nothing": (
        lambda _: tallax.watch(Net(), stacks="layers"),
        tallax.InvalidValueError,
        "stacks: selects no module of the model.\n  got:       'layers'\n"
        "  expected:  blocks/0, blocks/0/down, blocks/0/up, "
        'blocks/1, blocks/1/down, blocks/1/up, first\n  fix:       stacks="layers"',
    ),
    "a statistic in the place of a function": (
        lambda _: tallax.watch(Net(), statistic=3),
        tallax.InvalidTypeError,
        "statistic: takes a function that makes a statistic.\n  got:  int (3)\n"
        "  fix:  statistic=tallax.statistics.Moments, which is called once for each tensor",
    ),
    "axes that are not there": (
        lambda _: tallax.watch(on_a_mesh(), batch_axes="batch"),
        tallax.InvalidValueError,
        "batch_axes: must name axes of the mesh that the model is on.\n  got:       'batch'\n"
        "  expected:  axes among ('data',)\n  fix:       batch_axes='data'",
    ),
}
