# SPDX-License-Identifier: Apache-2.0
"""A network to watch, and every mistake in a call of `tallax.watch`, with its error."""

import jax
import jax.numpy as jnp
from flax import nnx

import tallax
from tallax import watching


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


class Idle(nnx.Module):
    def __init__(self):
        self.layer = Layer(3, 3, nnx.Rngs(0))

    def __call__(self, x):
        return x


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
    "a Param": (
        lambda _: tallax.watch(Net(), sites="first/kernel"),
        tallax.InvalidValueError,
        "sites: takes modules, and this is a Param.\n  got:       str ('first/kernel')\n"
        "  expected:  blocks/0, blocks/0/down, blocks/0/up, blocks/1, blocks/1/down, blocks/1/up, first\n"
        '  fix:       sites="first", gradients=True',
    ),
    "a predicate that raises": (
        lambda _: tallax.watch(Net(), sites=lambda path: True),
        tallax.InvalidValueError,
        "sites: takes a predicate (path, module) -> bool, and this one raised.\n"
        "  got:  TypeError: <lambda>.<locals>.<lambda>() takes 1 positional argument but 2 were given, for the model\n"
        "  fix:  sites=lambda path, module: isinstance(module, nnx.Linear)",
    ),
    "no such method": (
        lambda _: tallax.watch(Net(), sites=Layer, method="call"),
        tallax.InvalidValueError,
        "method: no chosen module has this method.\n  got:       'call'\n  expected:  __call__\n"
        '  fix:       method="__call__"',
    ),
    "no such method for a preset": (
        lambda _: tallax.watch(Net(), method="encode", outputs=False, presets=watching.massive_activations()),
        tallax.InvalidValueError,
        "method: no chosen module has this method.\n  got:       'encode'\n  expected:  __call__\n"
        '  fix:       method="__call__"',
    ),
    "methods of the wrong kind": (
        lambda _: tallax.watch(Net(), method=3),
        tallax.InvalidTypeError,
        'method: takes a string, or several in a tuple.\n  got:  int (3)\n  fix:  method="__call__"',
    ),
    "stacks of the wrong kind": (
        lambda _: tallax.watch(Net(), stacks=Block),
        tallax.InvalidTypeError,
        "stacks: takes a string, or several in a tuple.\n  got:  ModuleMeta (<class 'tests.watch_errors.Block'>)\n"
        '  fix:  stacks="layers"',
    ),
    "a statistic that needs arguments": (
        lambda _: tallax.watch(Net(), statistic=lambda shape: tallax.statistics.Moments(shape=shape)),
        tallax.InvalidTypeError,
        "statistic: takes a function that makes a statistic.\n"
        "  got:  TypeError: <lambda>.<locals>.<lambda>() missing 1 required positional argument: 'shape'\n"
        "  fix:  statistic=tallax.statistics.Moments, or lambda: tallax.statistics.Extrema()",
    ),
    "one statistic for all": (
        lambda _: [made := tallax.statistics.Moments(), tallax.watch(Net(), statistic=lambda: made)],
        tallax.InvalidValueError,
        "statistic: takes a function that makes a new statistic at each call.\n  got:  the same Moments twice\n"
        "  fix:  statistic=lambda: tallax.statistics.Moments(...)",
    ),
    "a step below 0": (
        lambda _: tallax.watch(Net(), step=-1),
        tallax.InvalidValueError,
        "step: takes a Counter, or an integer that is not negative.\n  got:  int (-1)\n  fix:  step=model.step",
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
    "no preset": (
        lambda _: tallax.watch(
            Net(),
            presets="attention",
        ),
        tallax.InvalidTypeError,
        "presets: takes presets, which the functions of tallax.watching return.\n"
        "  got:  str ('attention')\n"
        "  fix:  presets=[tallax.watching.update_ratio(), tallax.watching.attention()]",
    ),
    "no attention": (
        lambda _: tallax.watch(Net(), presets=watching.attention()),
        tallax.InvalidValueError,
        "attention: the model has no module with a function in the attribute attention_fn.\n"
        "  got:  sites='**'\n"
        "  fix:  function= with the attribute in which the modules keep their attention function",
    ),
    "sites that are not there": (
        lambda _: tallax.watch(Net(), presets=watching.dead_units("block/*")),
        tallax.InvalidValueError,
        "sites: selects no module of the model.\n"
        "  got:       str ('block/*')\n"
        "  expected:  blocks/1, blocks/0, blocks/1/up\n"
        '  fix:       sites="blocks/1"',
    ),
    "twice of presets": (
        lambda _: tallax.watch(Net(), presets=[watching.dead_units("**/up"), watching.dead_units("blocks/0/up")]),
        tallax.InvalidValueError,
        "dead_units: two presets of this name select the same module.\n"
        "  got:  blocks/0/up\n"
        "  fix:  one preset for all modules: sites=[...]",
    ),
    "no optimizer of presets": (
        lambda _: tallax.watch(Net(), presets=watching.update_ratio()),
        tallax.InvalidTypeError,
        "watch: parameters, gradients and updates are seen in optimizer.update, so it needs the optimizer.\n"
        "  got:  no optimizer\n"
        "  fix:  tallax.watch(model, optimizer, gradients=True)",
    ),
    "threshold": (
        lambda _: watching.dead_units("up", threshold=jnp.nan),
        tallax.InvalidValueError,
        "dead_units: threshold takes a finite number.\n  got:  float (nan)\n  fix:  threshold=0.0",
    ),
    "units": (
        lambda _: watching.dead_units("up", units=0),
        tallax.InvalidValueError,
        "dead_units: units takes a positive integer.\n  got:  int (0)\n  fix:  units=8",
    ),
    "function": (
        lambda _: watching.attention(function=3),
        tallax.InvalidTypeError,
        'attention: function takes the name of an attribute.\n  got:  int (3)\n  fix:  function="attention_fn"',
    ),
    "heads": (
        lambda _: watching.attention(heads=2.0),
        tallax.InvalidValueError,
        "attention: heads takes a positive integer.\n  got:  float (2.0)\n  fix:  heads=8",
    ),
    "experts": (
        lambda _: watching.expert_load("gate", experts=True),
        tallax.InvalidValueError,
        "expert_load: experts takes a positive integer.\n  got:  bool (True)\n  fix:  experts=8",
    ),
    "top_k": (
        lambda _: watching.expert_load("gate", top_k=3, experts=2),
        tallax.InvalidValueError,
        "expert_load: top_k must not be larger than the number of experts.\n"
        "  got:  top_k=3, experts=2\n"
        "  fix:  top_k=2",
    ),
    "one width": (
        lambda _: watching.coordinate_check(Net, [64, 64]),
        tallax.InvalidValueError,
        "widths: takes two or more different positive integers.\n  got:  list ([64, 64])\n  fix:  [64, 128, 256, 512]",
    ),
    "no factory": (
        lambda _: watching.coordinate_check(3, [1, 2]),
        tallax.InvalidTypeError,
        "factory: takes a function from a width to a model, or to a model and its optimizer.\n"
        "  got:  int (3)\n"
        "  fix:  lambda width: Model(width, nnx.Rngs(0))",
    ),
    "no model of presets": (
        lambda _: watching.coordinate_check(lambda width: width, [1, 2]),
        tallax.InvalidTypeError,
        "factory: takes a function from a width to a model, or to a model and its optimizer.\n"
        "  got:  int (1)\n"
        "  fix:  lambda width: Model(width, nnx.Rngs(0))",
    ),
    "steps without a step": (
        lambda _: watching.coordinate_check(Net, [1, 2], steps=3),
        tallax.InvalidValueError,
        "steps: takes the number of training steps, which train_step runs.\n"
        "  got:  steps=3, no train_step\n"
        "  fix:  coordinate_check(factory, widths, x, y, train_step=train_step, steps=4)",
    ),
    "other modules": (
        lambda _: watching.coordinate_check(lambda width: Net(blocks=width), [1, 2], jnp.ones((2, 3))),
        tallax.InvalidValueError,
        "factory: must make a model with the same modules at each width.\n"
        "  got:  at width 2, blocks/1, blocks/1/down, blocks/1/up differ\n"
        "  fix:  sites= with the modules that all widths have",
    ),
    "nothing seen": (
        lambda _: watching.coordinate_check(
            lambda width: Idle(),
            [1, 2],
            jnp.ones(3),
            sites="layer",
        ),
        tallax.InvalidValueError,
        "sites: no output of a chosen module was seen.\n"
        "  got:  it was not called, or as Class.method(module, ...), which a watch does not see\n"
        "  fix:  a model in training mode (model.train()), and sites that it calls",
    ),
}
