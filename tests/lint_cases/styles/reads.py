"""Reads, in other styles."""

import jax, jax.numpy as jnp, numpy as np
import flax.nnx as nn
from flax.nnx import Variable, BatchStat
import logging
logger = logging.getLogger(__name__)

class M(nn.Module):
    def __init__(self):
        self.count = Variable(jnp.zeros((), jnp.int32))
        self.ema = BatchStat(jnp.zeros((4,)))
    def __call__(self, x):
        if self.count % 100 == 0:  # error: TLX003
            x = x + 1
        n = int(self.count)  # error: TLX003
        k = self.count.item()  # error: TLX003
        v = float(self.ema.mean())  # error: TLX003
        a = np.asarray(self.ema)  # error: TLX003
        while self.count < 3:  # error: TLX003
            break
        y = x if bool(self.count) else -x  # error: TLX003
        z = x if self.count > 3 else -x  # error: TLX003
        for _ in range(int(self.count[...])):  # error: TLX003
            pass
        match int(self.count[...]):  # error: TLX003
            case 0:
                pass
        if self.ema.shape[0] > 3:
            pass
        return self._helper(x)
    def _helper(self, x):
        c = self.count[...]
        if c > 5:  # error: TLX003
            return x
        if not self.is_warm:  # error: TLX003
            return x
        return x
    @property
    def is_warm(self):
        return self.count[...] > 10
    def report(self):
        return int(self.count[...])

@nn.jit
def step(model: M, x):
    return model(x).sum()

def train(model: M, batches):
    for i, b in enumerate(batches):
        loss = step(model, b)
        if model.count[...] % 100 == 0:  # error: TLX003
            logger.info("step")
        if int(model.count[...]) % 100 == 0:  # error: TLX003
            logger.info("step")
        if i % 100 == 0:
            logger.info("step %d", int(model.count[...]))
        print(model.count[...])  # error: TLX003

def train2(model: M, batches):
    jitted = nn.jit(lambda m, x: m(x).sum())
    it = iter(batches)
    while (b := next(it, None)) is not None:
        loss = jitted(model, b)
        done = bool(model.count[...] > 10)  # error: TLX003
        n = jax.device_get(model.count)  # error: TLX003
        logger.info(f"{model.count[...].item()}")  # error: TLX003
