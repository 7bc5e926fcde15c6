"""Plain Python counters."""

import jax.numpy as jnp
from flax import nnx


class Base(nnx.Module):
    calls: int = 0

    def __init__(self):
        self.seen = 0


class Model(Base):
    def __init__(self, n):
        super().__init__()
        self.count = 0
        self.loss = 0.0
        self.array = jnp.zeros(())
        self.index = 0
        self.names = ""
        self.given = n
        self.count += 1

    def __call__(self, x):
        self.count += 1  # error: TLX007
        self.seen += 1  # error: TLX007
        self.calls -= 1  # error: TLX007
        self.count = self.count + 1  # error: TLX007
        self.array += 1
        self.index = (self.index + 1) % 3
        self.names += "x"
        self.given += 1
        self.trained = True
        return x

    def update(self, loss):
        self.loss += 0.5  # error: TLX007
        return loss

    def __next__(self):
        self.count += 1


class Sized(nnx.Pytree):
    def __init__(self):
        self.length = 0

    def append(self, x):
        self.length += 1


class Trainer:
    def __init__(self):
        self.steps = 0

    def __call__(self):
        self.steps += 1


class Cached(nnx.Module):
    """What is no state, and is given an array."""

    def __init__(self, n):
        self.keys = None
        self.values = nnx.data(None)
        self.width = None
        self.seen = jnp.zeros(n)
        self.calls = 0

    def __call__(self, x):
        keys, values = jnp.split(x, 2)
        self.keys = keys[:, -3:]  # error: TLX007
        self.values = values
        self.width = x.shape[0]
        self.seen = x.sum(0)
        self.calls = 1 + self.calls  # error: TLX007
        return x

    def prepare(self, x):
        self.keys = jnp.zeros(x)


class Lazy(nnx.Module):
    """Flags that the forward path flips, also in its helpers, and flags that are a choice."""

    def __init__(self):
        self.ready = False
        self.built = False
        self.training = True
        self.verbose = False
        self.scale = 1.0

    def __call__(self, x):
        if not self.ready:
            self._start(x)
        self.verbose = False
        self.scale *= 0.9  # error: TLX007
        return x

    def _start(self, x):
        self.ready = True  # error: TLX007

    def forward(self, x):
        self.built = True  # error: TLX007
        return x

    def evaluate(self):
        self.training = False


class Turned(nnx.Module):
    def __init__(self):
        self.ready = False
        self.mode = "train"
        self.word = "a"

    @nnx.jit
    def step(self, x):
        self.ready = True  # error: TLX007
        self.mode = "eval"  # error: TLX007
        return x

    def __call__(self, x):
        self.ready = not self.ready  # error: TLX007
        return x

    def set_mode(self):
        self.ready = True
        self.word = "b"


@nnx.jit
def from_outside(model: Turned, x):
    model.ready = True  # error: TLX007
    return x


def on_the_host(model: Turned):
    model.ready = True


class Summed(nnx.Module):
    def attach(self):
        self.energy = 0
        self.steps = 0

    def hold(self, x):
        self.energy += jnp.sum(x)  # error: TLX007
        self.energy += jnp.max(x)
