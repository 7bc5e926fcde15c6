"""All but the parameters is saved."""

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
    np.savez(
        path, **{name: np.asarray(variable[...]) for name, variable in variables_of(model).items()}
    )


def restore(model: nnx.Module, path: str) -> None:
    """Reads the state of a model from a file, or raises an error and changes nothing."""
    variables = variables_of(model)
    with np.load(path) as file:
        saved = {name: file[name] for name in file}
    for name, variable in variables.items():
        value = variable[...]
        if name not in saved:
            raise ValueError(f"{path} has no {name}")
        if (saved[name].shape, saved[name].dtype) != (value.shape, value.dtype):
            raise ValueError(f"{name} is {saved[name].dtype}{saved[name].shape} in {path}")
    for name, variable in variables.items():
        variable[...] = jnp.asarray(saved[name])


def variables_of(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns each Variable of a model, of any type, by its path."""
    nodes = nnx.iter_graph(model)
    return {
        "/".join(map(str, path)): node for path, node in nodes if isinstance(node, nnx.Variable) and not isinstance(node, nnx.Param)
    }


if __name__ == "__main__":
    model = Model(experts=2)
    model.kernel[...] = jnp.array([2.0, 3.0])
    with tempfile.TemporaryDirectory() as folder:
        save(model, os.path.join(folder, "model.npz"))
        restored = Model(experts=2)
        restore(restored, os.path.join(folder, "model.npz"))
    print("restored: kernel", restored.kernel[...])
