"""Mode flags, in other styles."""

import flax.nnx as nnx, jax.numpy as jnp
from flax.nnx import Module


class A(Module):
    def __init__(self):
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x):
        if self.train:  # error: TLX018
            x = x * 2
        x = self.drop(x, deterministic=not self.train)  # error: TLX018
        y = x if self.eval else -x  # error: TLX018
        mode = "a" if self.train and x.ndim else "b"  # error: TLX018
        self.go(x, train=self.train)  # error: TLX018
        z = jnp.where(self.train, x, y)  # error: TLX018
        return x

    def go(self, x, train): ...


class B(Module):
    def __init__(self):
        self.train = False  # error: TLX018


class C(Module):
    train: bool = True

    def __call__(self, x):
        return x if self.train else -x


class D(A):
    def run(self):
        self.train()
        return not self.eval  # error: TLX018


def f(m: A):
    m.train = False  # error: TLX018
    m.eval()
    flag = m.train
