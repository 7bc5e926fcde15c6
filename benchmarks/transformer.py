# SPDX-License-Identifier: Apache-2.0
"""Group `transformer`: a step of a realistic size, with more and more counters and statistics in each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks._timing import Case, Group

NONE = "compile_step, no statistics"


@dataclass(frozen=True)
class Size:
    """The size of the model and its batch."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    vocabulary: int = 256
    sequences: int = 8
    tokens: int = 128


USUAL = Size()


def group(size: Size = USUAL, numbers: Sequence[int] = (3, 12, 48)) -> Group:
    """Returns the cases. Each one sees every entry of an activation, or every token; computing that costs, too."""
    return Group(
        "transformer",
        f"a step of a {size.layers}-layer transformer of width {size.width} with Adam, "
        f"{size.sequences} x {size.tokens} tokens",
        NONE,
        [
            Case(name="nnx.jit, no statistics", make=lambda: ref.by_nnx_jit(*model_and_batch(size, 0), train_step)),
            Case(name=NONE, make=lambda: ref.by_compile_step(*model_and_batch(size, 0), train_step)),
            *(
                Case(
                    name=f"{number} statistics a layer, every {'token' if per_token else 'entry'}",
                    make=lambda number=number, per_token=per_token: ref.by_compile_step(
                        *model_and_batch(size, number, per_token=per_token), train_step
                    ),
                )
                for per_token in (True, False)
                for number in numbers
            ),
        ],
        rounds_in_one=5,
    )


def model_and_batch(
    size: Size, number: int, *, per_token: bool = False
) -> tuple[tuple[Any, nnx.Optimizer], tuple[jax.Array]]:
    """Returns a new model with its optimizer, and a batch of token sequences."""
    model = _Transformer(size, number, per_token, nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (size.sequences, size.tokens + 1), 0, size.vocabulary)
    return (model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)), (tokens,)


def train_step(model: Any, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
    """Updates the model on the next token and returns the loss."""

    def loss_fn(model: Any) -> jax.Array:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # Flax's layers need them
            logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    loss, grads = tallax.value_and_grad(loss_fn)(model)
    ref.update(optimizer, model, grads)
    return loss


class _Transformer(nnx.Module):
    def __init__(self, size: Size, number: int, per_token: bool, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(size.vocabulary, size.width, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((size.tokens, size.width)))
        self.layers = nnx.List([_Layer(size, number, per_token, rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens) + self.position[...]
        mask = nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.embedding.attend(self.norm(x))


class _Layer(nnx.Module):
    def __init__(self, size: Size, number: int, per_token: bool, rngs: nnx.Rngs):
        self.before_attention = nnx.LayerNorm(size.width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(size.heads, size.width, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(size.width, rngs=rngs)
        self.up = nnx.Linear(size.width, 4 * size.width, rngs=rngs)
        self.down = nnx.Linear(4 * size.width, size.width, rngs=rngs)
        self.watch = _Watch(number, per_token)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        attended = self.attention(self.before_attention(x), mask=mask)
        x = x + attended
        hidden = nnx.gelu(self.up(self.before_mlp(x)))
        x = x + self.down(hidden)
        self.watch(attended, hidden, x)
        return x


class _Watch(nnx.Module):
    """Counts, rates and histograms, in turn, of some activations, in turn; each with a threshold of its own."""

    def __init__(self, number: int, per_token: bool):
        kinds: list[Callable[[], Any]] = [
            tallax.Counter,
            tallax.statistics.Rate,
            lambda: tallax.statistics.Histogram(-5.0, 5.0, 64),
        ]
        self.state = nnx.List([kinds[k % 3]() for k in range(number)])
        self.per_token = per_token

    def __call__(self, *activations: jax.Array) -> None:
        for k, each in enumerate(self.state):
            x = activations[k // 3 % len(activations)]
            x = (jnp.linalg.norm(x, axis=-1) if self.per_token else x) - k / 100
            if isinstance(each, tallax.Counter):
                each.count(x > 0)
            else:
                each.update(x > 0 if isinstance(each, tallax.statistics.Rate) else x)
