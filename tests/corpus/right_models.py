# SPDX-License-Identifier: Apache-2.0
"""Whole models, small: plain ones, ones with state, and ones after the examples that come with Flax."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import BATCH, IMAGES, SEQUENCE, TOKENS, Counted, Layer, right


@right("mlp", "no state")
class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])

    def __call__(self, x):
        first, second = self.layers
        return second(nnx.gelu(first(x)))


@right("cnn", "images, batch norm and dropout", inputs=(IMAGES,))
class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(self.dropout(x.reshape(x.shape[0], -1)))


@right("transformer-block", "attention with a causal mask", inputs=(SEQUENCE,))
class TransformerBlock(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.down = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


@right("mixture-of-experts", "stacked experts; the load is an average that evaluation leaves alone")
class MixtureOfExperts(nnx.Module):
    def __init__(self, rngs):
        self.gate = nnx.Linear(4, 3, rngs=rngs)
        self.experts = nnx.vmap(lambda rngs: nnx.Linear(4, 2, rngs=rngs))(rngs.fork(split=3))
        self.load = nnx.Variable(jnp.full(3, 1 / 3, jnp.float32))
        self.deterministic = False

    def __call__(self, x):
        gates = nnx.softmax(self.gate(x))
        if not self.deterministic:
            self.load[...] = 0.9 * self.load[...] + 0.1 * jax.lax.stop_gradient(gates.mean(0))
        outputs = nnx.vmap(lambda expert, x: expert(x), in_axes=(0, None))(self.experts, x)
        return jnp.einsum("be,ebf->bf", gates, outputs)


class Block(nnx.Module):
    """A layer with all that a layer may carry."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        if not self.norm.use_running_average:
            self.count[...] += 1
        return self.dropout(nnx.gelu(self.norm(self.linear(x))))


@right("scan-over-layers", "made by vmap and scanned, as in Flax's toy example 06: each layer has its state")
class ScanOverLayers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.vmap(Block)(rngs.fork(split=3))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)


@right("remat-over-layers", "rematerialized blocks count once")
class RematOverLayers(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Counted(rngs), Counted(rngs)])

    def __call__(self, x):
        run = nnx.remat(lambda block, x: nnx.tanh(block(x)))
        for block in self.blocks:
            x = run(block, x)
        return x


@right("scan-with-carried-cell", "the cell is carried, so it counts its steps", inputs=(SEQUENCE,))
class ScanWithCarriedCell(nnx.Module):
    def __init__(self, rngs):
        self.cell = Counted(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        def run(carry, x):
            cell, h = carry
            h = nnx.tanh(cell(x + h))
            return (cell, h), h

        return run((self.cell, jnp.zeros_like(x[:, 0])), x)[1]


@right("cond-between-experts", "nnx.cond brings back what the taken branch wrote")
class CondBetweenExperts(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List([Counted(rngs), Counted(rngs)])

    def __call__(self, x):
        a, b = self.experts
        return nnx.cond(x.sum() > 0, lambda a, b, x: a(x), lambda a, b, x: b(x), a, b, x)


@right("jitted-method", "nnx.jit on the method, so jit in jit")
class JittedMethod(Counted):
    @nnx.jit
    def __call__(self, x):
        return super().__call__(x)


@right("fixed-point", "a loop on values, by nnx.fori_loop")
class FixedPoint(Layer):
    def __call__(self, x):
        def body(_, carry):
            layer, h = carry
            return layer, nnx.tanh(layer.linear(h) + x)

        return nnx.fori_loop(0, 3, body, (self, jnp.zeros_like(x)))[1]


@right("ensemble", "stacked members, each with its own counts, by vmap")
class Ensemble(nnx.Module):
    def __init__(self, rngs):
        self.members = nnx.vmap(Counted)(rngs.fork(split=3))

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x).mean(0)


# After the examples that come with Flax: what their code looks like, in other words.


class Divergence(nnx.Variable):
    """A term of the loss that the encoder leaves for the caller to pop."""


@right(
    "variational-autoencoder", "the sampler draws in evaluation too; the term is popped in the call", inputs=(BATCH,)
)
class VariationalAutoencoder(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(4, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.decoder = nnx.Linear(3, 4, rngs=rngs)
        self.rngs = rngs.fork()

    def encode(self, x):
        mean, log_std = jnp.split(self.encoder(self.dropout(x)), 2, -1)
        self.divergence = Divergence(0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).mean())
        return mean + jnp.exp(log_std) * self.rngs.params.normal(mean.shape)

    def __call__(self, x):
        y = self.decoder(self.encode(x))
        (divergence,) = jax.tree.leaves(nnx.pop(self, Divergence))
        return ((x - y) ** 2).mean() + 0.1 * divergence


@right(
    "decoder-with-shared-embedding", "as lm1b: the embedding is also the output layer, by attend()", inputs=(TOKENS,)
)
class DecoderWithSharedEmbedding(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.position = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (5, 4)))
        self.block = TransformerBlock(rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, tokens):
        shifted = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        return self.embed.attend(self.norm(self.block(self.embed(shifted) + self.position[...][None])))


@right(
    "gated-feed-forward",
    "as gemma: gated, with a soft cap, and statistics that are sown on request",
    inputs=(SEQUENCE,),
)
class GatedFeedForward(nnx.Module):
    def __init__(self, rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.norm = nnx.RMSNorm(4, rngs=rngs)
        self.gate, self.up, self.down = linear(4, 8), linear(4, 8), linear(8, 4)
        self.soft_cap = 30.0
        self.sow_hidden = False

    def __call__(self, x):
        hidden = self.norm(x)
        hidden = nnx.gelu(self.gate(hidden)) * self.up(hidden)
        if self.sow_hidden:
            self.sow(nnx.Intermediate, "hidden", hidden)
        return self.soft_cap * jnp.tanh((x + self.down(hidden)) / self.soft_cap)


def _decode_with_cache(model, x):
    y, cache = model(x, model.empty_cache(x.shape[0]))
    return y, cache["end"]


@right(
    "cache-as-an-argument",
    "as gemma: the cache is passed and returned, not kept",
    inputs=(SEQUENCE[:, 0],),
    call=_decode_with_cache,
)
class CacheAsAnArgument(Layer):
    def empty_cache(self, size):
        return {"keys": jnp.zeros((size, 8, 4)), "end": jnp.zeros((), jnp.int32)}

    def __call__(self, x, cache):
        keys = jax.lax.dynamic_update_index_in_dim(cache["keys"], self.linear(x), cache["end"], 1)
        return keys.sum(1), {"keys": keys, "end": cache["end"] + 1}


@right("toy-train-step", "as toy example 01: split, differentiate with aux, update")
class ToyTrainStep(nnx.Module):
    def __init__(self, rngs):
        self.model = Counted(rngs)

    def __call__(self, x):
        graphdef, params, counts = nnx.split(self.model, nnx.Param, ...)

        def loss(params):
            model = nnx.merge(graphdef, params, counts, copy=True)
            return (model(x) ** 2).mean(), nnx.state(model, nnx.Not(nnx.Param))

        (value, counts), grads = jax.value_and_grad(loss, has_aux=True)(params)
        nnx.update(self.model, counts)
        return value, grads
