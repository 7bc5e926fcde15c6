"""Containers without list, in other styles."""

from flax import nnx
from flax.nnx import Linear


class E(nnx.Module):
    def __init__(self, rngs, blocks: list[Linear]):
        self.blocks = blocks  # error: TLX014
