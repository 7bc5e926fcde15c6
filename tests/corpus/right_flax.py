# SPDX-License-Identifier: Apache-2.0
"""Flax's own layers, and every item of tallax on a model."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

import tallax
from tests import cases
from tests.corpus.case import BATCH, IMAGES, RIGHT, SEQUENCE, TOKENS, Right, right


def _layer(name, make, inputs=(BATCH,), note="", call=None):
    RIGHT[f"flax-{name}"] = Right(make, inputs, call, note)


_layer("linear", lambda rngs: nnx.Linear(4, 3, rngs=rngs))
_layer("conv", lambda rngs: nnx.Conv(3, 4, (3, 3), rngs=rngs), (IMAGES,))
_layer("embed", lambda rngs: nnx.Embed(7, 4, rngs=rngs), (TOKENS,))
_layer("prelu", nnx.PReLU)
_layer("layer-norm", lambda rngs: nnx.LayerNorm(4, rngs=rngs))
_layer("rms-norm", lambda rngs: nnx.RMSNorm(4, rngs=rngs))
_layer("group-norm", lambda rngs: nnx.GroupNorm(4, num_groups=2, rngs=rngs))
_layer("instance-norm", lambda rngs: nnx.InstanceNorm(3, rngs=rngs), (IMAGES,))
_layer("batch-norm", lambda rngs: nnx.BatchNorm(4, rngs=rngs), note="training: the statistics move")
_layer("batch-norm-eval", lambda rngs: nnx.BatchNorm(4, use_running_average=True, rngs=rngs))
_layer("dropout", lambda rngs: nnx.Dropout(0.5, rngs=rngs), note="a random state, and nothing to train")
_layer("dropout-eval", lambda rngs: nnx.Dropout(0.5, deterministic=True, rngs=rngs))
_layer("lora", lambda rngs: nnx.LoRA(4, 2, 3, base_module=nnx.Linear(4, 3, rngs=rngs), rngs=rngs))
_layer("lora-linear", lambda rngs: nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs))
_layer("attention", lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs), (SEQUENCE,))
_layer(
    "attention-dropout",
    lambda rngs: nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, deterministic=False, decode=False, rngs=rngs),
    (SEQUENCE,),
)
_layer("rnn", lambda rngs: nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs)), (SEQUENCE,))
_layer(
    "bidirectional",
    lambda rngs: nnx.Bidirectional(nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs)), nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs))),
    (SEQUENCE,),
)
_layer(
    "sequential",
    lambda rngs: nnx.Sequential(
        nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Dropout(0.1, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
    ),
    note="a function among the layers",
)
for _cell in (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell):
    _layer(
        _cell.__name__.lower(),
        lambda rngs, cell=_cell: cell(4, 3, rngs=rngs),
        note="returns a carry; holds functions that do not pickle",
        call=lambda cell, x: cell(cell.initialize_carry(x.shape, rngs=nnx.Rngs(0)), x),
    )


@right("flax-attention-decode", "one token a call; 16 fit", inputs=(SEQUENCE[:, :1],))
def make_decoding_attention(rngs):
    attention = nnx.MultiHeadAttention(2, 4, decode=True, rngs=rngs)
    attention.init_cache((2, 16, 4))
    return attention


def _touched(touch, model, x):
    touch(model, x)
    return model(x)


for _name, _item in cases.STATE_CASES.items():
    RIGHT[f"tallax-{_name}"] = Right(
        functools.partial(cases.Model, _item.make), (BATCH[:, :3],), functools.partial(_touched, _item.touch)
    )


@right("tallax-in-experts", "items in a list of dicts")
class TallaxInExperts(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List(
            [nnx.Dict(layer=nnx.Linear(4, 2, rngs=rngs), acts=tallax.statistics.Moments()) for _ in range(2)]
        )
        self.load = tallax.statistics.Rate(shape=2)

    def __call__(self, x):
        outputs = jnp.stack([expert["layer"](x) for expert in self.experts])
        for expert, y in zip(self.experts, outputs, strict=True):
            expert["acts"].update(y)
        self.load.update(jax.nn.one_hot(outputs.sum(-1).argmax(0), 2, dtype=bool))
        return outputs.max(0)
