"""The optimizer is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Model(nnx.Module):
    """Two weights, with noise on the inputs."""

    def __init__(self):
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weights[...]


class Job:
    """A training run: everything that one step needs."""

    def __init__(self):
        self.model = Model()
        self.optimizer = nnx.Optimizer(self.model, optax.adam(0.1), wrt=nnx.Param)
        self.rngs = nnx.Rngs(noise=0)
        self.position = 0

    def train(self, steps: int) -> list[float]:
        """Trains on; returns the loss of each step."""
        return [self.step() for _ in range(steps)]

    def step(self) -> float:
        x = np.random.default_rng(self.position).normal(size=(8, 2)).astype(np.float32)
        y = jnp.asarray(x @ np.array([1.0, 2.0], np.float32))
        noisy = x + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        loss, gradient = nnx.value_and_grad(lambda model: jnp.mean((model(noisy) - y) ** 2))(self.model)
        self.optimizer.update(self.model, gradient)
        self.position += 1
        return float(loss)


def save(job: Job, path: str) -> None:
    """Writes a job to a file."""
    leaves = jax.tree.leaves(state_of(job))
    arrays = {f"leaf{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
    np.savez(path, position=job.position, **arrays)


def load(path: str) -> Job:
    """Returns the job that a file holds."""
    job = Job()
    state = state_of(job)
    with np.load(path) as file:
        job.position = int(file["position"])
        leaves = [jnp.asarray(file[f"leaf{number}"]) for number in range(len(jax.tree.leaves(state)))]
    nnx.update(parts_of(job), jax.tree.unflatten(jax.tree.structure(state), leaves))
    return job


def parts_of(job: Job) -> tuple:
    return job.model, job.rngs


def state_of(job: Job) -> nnx.State:
    """Returns the state of a job but for its keys: these follow from the seed, and NumPy cannot save them."""
    return nnx.state(parts_of(job), nnx.Not(nnx.RngKey))


if __name__ == "__main__":
    job = Job()
    job.train(6)
    print("weights after 6 steps:", np.asarray(job.model.weights[...]).round(2))
