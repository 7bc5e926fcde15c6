"""Exercise 10: a checkpoint that forgets a buffer. With tallax."""

import os
import tempfile

import jax.numpy as jnp
from flax import nnx

import tallax


class Model(tallax.Module):
    """A router with a trained kernel, a bias that a rule updates, and a step counter."""

    def __init__(self, experts: int):
        self.kernel = nnx.Param(jnp.zeros(experts))
        self.bias = tallax.Buffer(jnp.zeros(experts))
        self.step = tallax.Counter()


def save(model: nnx.Module, path: str) -> None:
    """Writes the state of a model to a folder."""
    tallax.save(path, model)


def restore(model: nnx.Module, path: str) -> None:
    """Reads the state of a model from a folder, or raises an error and changes nothing."""
    tallax.restore(path, model)


if __name__ == "__main__":
    model = Model(experts=2)
    model.kernel[...] = jnp.array([2.0, 3.0])
    with tempfile.TemporaryDirectory() as folder:
        save(model, os.path.join(folder, "model.npz"))
        restored = Model(experts=2)
        restore(restored, os.path.join(folder, "model.npz"))
    print("restored: kernel", restored.kernel[...])
