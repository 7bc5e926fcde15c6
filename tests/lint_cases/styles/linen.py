"""A test that runs the same layer in Linen and in NNX."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


def compare(variables, x):
    quantized = variables["params"]["dense"]
    print(quantized.scale.value.shape)  # of an `nn.Partitioned`, which has no `get_value`
    layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    return nn.Dense(4).apply(variables, x) - layer.kernel.value  # error: TLX006
