"""A pickled dictionary of the paths, without Variables."""

import os
import pickle
import tempfile

import jax
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
    with open(path, "wb") as file:
        pickle.dump(jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model))), file)


def restore(model: nnx.Module, path: str) -> None:
    """Reads the state of a model from a file, or raises an error and changes nothing."""
    with open(path, "rb") as file:
        saved = pickle.load(file)
    state = nnx.state(model)
    due = nnx.to_pure_dict(state)
    if jax.tree.structure(saved) != jax.tree.structure(due):
        raise KeyError(f"{path} has other names")
    for got, expected in zip(jax.tree.leaves(saved), jax.tree.leaves(due), strict=True):
        assert got.shape == expected.shape, (got.shape, expected.shape)
        assert got.dtype == expected.dtype, (got.dtype, expected.dtype)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, saved))
    nnx.update(model, state)


if __name__ == "__main__":
    model = Model(experts=2)
    model.kernel[...] = jnp.array([2.0, 3.0])
    with tempfile.TemporaryDirectory() as folder:
        save(model, os.path.join(folder, "model.npz"))
        restored = Model(experts=2)
        restore(restored, os.path.join(folder, "model.npz"))
    print("restored: kernel", restored.kernel[...])
