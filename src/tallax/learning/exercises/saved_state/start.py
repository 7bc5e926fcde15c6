"""Exercise 10: a checkpoint that forgets a buffer.

It prints the right number, and it is wrong. Correct it.
"""

import os
import tempfile

import jax.numpy as jnp
import numpy as np
from flax import nnx


class Model(nnx.Module):
    """A router with a trained kernel, a bias that a rule updates, and a step counter."""

    def __init__(self, experts: int):
        self.kernel = nnx.Param(jnp.zeros(experts))
        self.bias = nnx.Variable(jnp.zeros(experts))
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))


def save(model: nnx.Module, path: str) -> None:
    """Writes the state of a model to a file."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    np.savez(
        path, **{"/".join(map(str, name)): np.asarray(variable[...]) for name, variable in state}
    )


def restore(model: nnx.Module, path: str) -> None:
    """Reads the state of a model from a file."""
    with np.load(path) as file:
        state = nnx.to_flat_state(nnx.state(model))
        for name, variable in state:
            if "/".join(map(str, name)) in file:
                variable[...] = jnp.asarray(file["/".join(map(str, name))])
        nnx.update(model, nnx.from_flat_state(state))


if __name__ == "__main__":
    model = Model(experts=2)
    model.kernel[...] = jnp.array([2.0, 3.0])
    with tempfile.TemporaryDirectory() as folder:
        save(model, os.path.join(folder, "model.npz"))
        restored = Model(experts=2)
        restore(restored, os.path.join(folder, "model.npz"))
    print("restored: kernel", restored.kernel[...])
