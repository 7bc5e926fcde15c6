"""Comments that silence nothing."""

import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.a = nnx.Variable(jnp.zeros(3, jnp.int32))
        self.b = nnx.Variable(0)  # noqa: TLX005
        self.c = nnx.Variable(jnp.array(0.5))  # noqa

    def __call__(self, x):
        self.a += 1  # noqa: TLX002
        self.a[...] += 1  # noqa: TLX002 # error: TLX020
        self.a[...] += 1  # noqa: E501, TLX002, TLX006 # error: TLX020
        self.a[...] += 1  # noqa: replaced-variable # error: TLX020
        self.a[...] += 1  # noqa: E501
        self.a[...] += 1  # noqa
        self.a -= jnp.sum(  # noqa: TLX002
            x
        )
        self.b[...] += 1
        return x + self.a.value  # noqa: TLX00
