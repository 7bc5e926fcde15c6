"""Reads through objects, in other styles."""

import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from flax.nnx import Variable

class Inner(nnx.Module):
    def __init__(self):
        self.n = Variable(jnp.zeros((), jnp.int32))
        self.active = Variable(jnp.array(False))
        self.cfg = Variable(3)

class M(nnx.Module):
    def __init__(self):
        self.inner = Inner()
        self.loss_scale = Variable(jnp.array(1.0, jnp.float32))
        self.hist = nnx.BatchStat(jnp.zeros((4,)))
        self.cells = nnx.List([Inner() for _ in range(2)])
    def __call__(self, x):
        if self.inner.active:  # error: TLX003
            x = x + 1
        if self.inner.active[...] and x.ndim == 2:  # error: TLX003
            x = x + 1
        n = self.inner.n[...]
        m = n + 1
        if m > 3:  # error: TLX003
            x = x * 2
        if jnp.any(self.hist[...] > 0):  # error: TLX003
            x = x * 2
        if (self.hist > 0).any():  # error: TLX003
            x = x * 2
        if jnp.isnan(self.loss_scale[...]):  # error: TLX003
            x = x * 2
        s = f"{float(self.loss_scale[...]):.2f}"  # error: TLX003
        k = min(int(self.inner.n[...]), 3)  # error: TLX003
        assert self.inner.n[...] >= 0  # error: TLX003
        y = [c for c in self.cells if c.active[...]]
        for c in self.cells:
            if c.active[...]:  # error: TLX003
                x = x + 1
            if not c.n[...] == 0:  # error: TLX003
                x = x + 1
        idx = self.hist[...].argmax().item()  # error: TLX003
        arr = np.array(self.hist[...])  # error: TLX003
        lst = self.hist[...].tolist()  # error: TLX003
        if self.hist[...].ndim == 1:
            x = x + 1
        if self.inner is not None and self.inner.n is not None:
            x = x + 1
        while self.inner.n[...] > 0:  # error: TLX003
            break
        return jnp.where(self.inner.n[...] > 3, x, -x)

    def summary(self):
        if self.inner.n[...] > 3:
            return float(self.loss_scale[...])
        return int(self.inner.n[...])

@nnx.jit
def step(m: M, opt: nnx.Optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(m)
    opt.update(m, grads)
    if opt.step[...] % 10 == 0:  # error: TLX003
        pass
    if m.loss_scale[...] > 2:  # error: TLX003
        pass
    lr = 0.1 if opt.step[...] < 100 else 0.01  # error: TLX003
    return loss

def loop(m: M, opt: nnx.Optimizer, xs):
    for x in xs:
        loss = step(m, opt, x)
        if opt.step[...] % 100 == 0:  # error: TLX003
            print("x")
        if int(opt.step[...]) % 100 == 0:  # error: TLX003
            print("x")
        n = int(m.inner.n[...])  # error: TLX003
    print(int(m.inner.n[...]))
    return float(m.loss_scale[...])
