"""State kept as nnx.Param."""

import jax
import jax.numpy as jnp
from flax import nnx


class MoEBias(nnx.Variable):
    pass


class Scale(nnx.Param):
    pass


class Bounds(nnx.Module):
    def __init__(self, dtype):
        self.low = nnx.Param(jnp.array(-float("inf"), dtype=dtype))  # error: TLX001
        self.high = nnx.Param(jnp.full((4,), jnp.inf))  # error: TLX001
        self.ids = nnx.Param(jnp.arange(8, dtype=jnp.int32))  # error: TLX001
        self.mask = nnx.Param(jnp.tril(jnp.ones((8, 8))))  # error: TLX001
        self.table = nnx.Param(jnp.ones(8), trainable=False)  # error: TLX001
        self.cutoff = nnx.Param(jnp.array(1e-10, dtype=jnp.float32))  # error: TLX001
        self.layer_scale = nnx.Param(jnp.full((8,), 1e-5, dtype=jnp.float32))
        self.quantized = nnx.Param(jnp.zeros((8, 8), jnp.int8))

    def __call__(self, x):
        x = jnp.clip(x, self.low[...], self.high[...])
        return jnp.log(jnp.maximum(x, self.cutoff[...])) * self.layer_scale[...]


class Statistics(nnx.Module):
    def __init__(self, shape, rngs: nnx.Rngs):
        self.calls = nnx.Param(jnp.zeros(()))  # error: TLX001, TLX004
        self.average = nnx.Param(jnp.zeros(shape))  # error: TLX001
        self.u = nnx.Param(jax.random.normal(rngs.params(), shape))  # error: TLX001
        self.mean = nnx.Param(jnp.ones(shape))  # error: TLX001
        self.var = nnx.Param(jnp.ones(shape))  # error: TLX001
        self.running_var = nnx.Param(jnp.ones(shape))  # error: TLX001
        self.latents_std = nnx.Param(jnp.ones(shape))  # error: TLX001
        self.global_step = nnx.Param(jnp.array(0.0, dtype=jnp.float32))  # error: TLX001
        self.momentum = nnx.Param(nnx.initializers.constant(0.9)(rngs.params(), ()))  # error: TLX001
        self.velocity = nnx.Variable(jnp.zeros(shape))
        self.target = nnx.Param(jnp.ones(shape))  # error: TLX001
        self.eps = nnx.Param(jnp.ones((1,)))  # error: TLX001

    def __call__(self, x):
        self.calls[...] += 1
        self.u[...] = x / jnp.linalg.norm(x)
        return x + jax.lax.stop_gradient(self.target[...])

    def observe(self, x):
        self.average[...] = 0.9 * self.average[...] + 0.1 * x
        self.mean, self.var = merged(x, self.mean, self.var)  # noqa: TLX002
        self.velocity[...] = self.momentum[...] * self.velocity[...] + x

    def scaled(self, x):
        return x / jnp.sqrt(x + self.eps)


def merged(x, mean, var):
    return mean + x.mean(), var + x.var()


class Said(nnx.Module):
    def __init__(self, bound, n, rngs: nnx.Rngs, use_bias, rule):
        # Used as it is, not trained.
        self.bound = nnx.Param(jnp.ones(n))  # error: TLX001
        positions = jnp.linspace(0, 1, n)  # fixed positions
        self.positions = nnx.Param(positions)  # error: TLX001
        # FIXED: better initialization
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (n, n)))
        # Learnable frequencies, from a fixed curve.
        self.curve = nnx.Param(jnp.linspace(0, 1, n))
        self.bias = nnx.Param(jnp.zeros(n))  # error: TLX001
        if rule == "loss free":
            self.bias = MoEBias(jnp.zeros(n))


class Learned(nnx.Module):
    """What is learned, whatever it is called."""

    def __init__(self, n, trainable, rngs: nnx.Rngs):
        self.mean = nnx.Param(jnp.zeros(n))
        self.log_std = nnx.Param(jnp.zeros(n))
        self.temperature = nnx.Param(jnp.full((1, n), 0.5, dtype=jnp.float32))
        self.scale = Scale(jnp.ones(n))
        self.step_size = nnx.Param(jnp.ones(()))
        if trainable:
            self.curve = nnx.Param(jnp.linspace(0, 1, n))
        else:
            self.curve = nnx.Variable(jnp.linspace(0, 1, n))
        self.state = nnx.BatchStat(jnp.zeros(n))
        self.loss_weights = nnx.Param(jnp.zeros(n))

    def __call__(self, x):
        return (x - self.mean[...]) * jnp.exp(self.log_std[...]) / self.temperature[...] * self.scale[...]

    def balance(self, grads, learning_rate):
        self.loss_weights[...] = self.loss_weights[...] - learning_rate * grads

    def load(self, array):
        self.mean[...] = array


class Held(nnx.Param):
    @classmethod
    def zeros(cls, n):
        return cls(jnp.zeros(n))


def sines(n):
    places = jnp.arange(n)
    return jnp.stack([jnp.sin(places), jnp.cos(places)], axis=-1)


def decaying(n):
    return nnx.Param(jnp.zeros(n))


class Tables(nnx.Module):
    """Tables that are computed from positions; what starts from positions and is learned; names of buffers."""

    def __init__(self, n, base, learned, rngs: nnx.Rngs):
        bands = 1.0 / base ** (jnp.arange(0, n, 2) / n)
        self.bands = nnx.Param(bands)  # error: TLX001
        self.waves = nnx.Param(sines(n).astype(jnp.float32))  # error: TLX001
        self.hop = nnx.Param(jnp.hanning(n))  # error: TLX001
        self.log_bands = nnx.Param(jnp.exp(-jnp.log(base) * jnp.arange(n) / n))  # error: TLX001
        self.rates = nnx.Param(jnp.log(jnp.arange(1, n + 1, dtype=jnp.float32)))
        self.noisy = nnx.Param(sines(n) + jax.random.normal(rngs.params(), (n, 2)))
        self.learned_waves = nnx.Param(sines(n))
        if learned:
            self.either = nnx.Param(sines(n))
        else:
            self.either = nnx.Variable(sines(n))
        self.running_mean = decaying(n)  # error: TLX001
        self.decay = decaying(n)
        self.e_score_correction_bias = Held.zeros(n)  # error: TLX001
        self.held = Held.zeros(n)

    def refit(self, x):
        self.rates = nnx.Param(jnp.linalg.lstsq(sines(8), x)[0])


class Commented(nnx.Module):
    def __init__(self):
        self.size = nnx.Param(jnp.ones(3))  # of a fixed size
        self.weight = nnx.Param(jnp.ones(3))  # unlike the one above, which is not trained
        self.table = nnx.Param(jnp.ones(3))  # fixed  # error: TLX001
        # Fixed sensor positions
        self.positions = nnx.Param(jnp.ones(3))  # error: TLX001
