"""Exercise 12: resume exactly. With tallax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tallax


class Model(nnx.Module):
    """Two weights, with noise on the inputs."""

    def __init__(self):
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weights[...]


class Data(tallax.Module):
    """The position in the data."""

    def __init__(self):
        self.position = tallax.Counter()

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        x = np.random.default_rng(int(self.position)).normal(size=(8, 2)).astype(np.float32)
        self.position += 1
        return x, x @ np.array([1.0, 2.0], np.float32)


class Job:
    """A training run: everything that one step needs."""

    def __init__(self):
        self.model = Model()
        self.optimizer = nnx.Optimizer(self.model, optax.adam(0.1), wrt=nnx.Param)
        self.rngs = nnx.Rngs(noise=0)
        self.data = Data()

    def train(self, steps: int) -> list[float]:
        """Trains on; returns the loss of each step."""
        return [self.step() for _ in range(steps)]

    def step(self) -> float:
        x, y = self.data.next()
        noisy = x + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        loss, gradient = nnx.value_and_grad(lambda model: jnp.mean((model(noisy) - y) ** 2))(
            self.model
        )
        self.optimizer.update(self.model, gradient)
        return float(loss)


def save(job: Job, path: str) -> None:
    """Writes a job to a folder."""
    tallax.save(path, **parts_of(job))


def load(path: str) -> Job:
    """Returns the job that a folder holds."""
    job = Job()
    tallax.restore(path, **parts_of(job))
    return job


def parts_of(job: Job) -> dict:
    return {"model": job.model, "optimizer": job.optimizer, "rngs": job.rngs, "data": job.data}


if __name__ == "__main__":
    job = Job()
    job.train(6)
    print("weights after 6 steps:", np.asarray(job.model.weights[...]).round(2))
