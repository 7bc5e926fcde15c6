"""Updates lost under transformations of JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


class Counting(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)

    def evaluate(self, x):
        return self.linear(x)

    @partial(jax.jit, static_argnums=0)
    def static(self, x):  # error: TLX008
        return self.linear(x)

    def checkpointed(self, x):
        return jax.checkpoint(self.__call__)(x)  # error: TLX008

    def evaluated(self, x):
        return jax.checkpoint(self.evaluate)(x)


class Normed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.layers = nnx.List([Counting(rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Pure(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.cell = nnx.GRUCell(3, 3, rngs=rngs)

    def __call__(self, carry, xs):
        def step(carry, x):
            return self.cell(carry, x)

        return lax.scan(step, carry, xs)


@jax.jit
def by_argument(model: Counting, x):  # error: TLX008
    return model(x)


@jax.jit
def returned(model: Counting, x):
    return model(x), model


@jax.jit
def evaluated(model: Counting, x):
    return model.evaluate(x)


@jax.jit
def pure(graphdef, state, x):
    model = nnx.merge(graphdef, state)
    return model(x), nnx.state(model)


@jax.jit
def step(model, x):  # error: TLX008
    def loss_fn(m):
        return m(x).mean()

    return nnx.value_and_grad(loss_fn)(model)


def closures(model: nnx.Module, xs, known: Counting):
    rngs = nnx.Rngs(0)
    plain = Pure(rngs)
    normed = Normed(rngs)

    @jax.jit
    def unknown(x):  # error: TLX008
        return model(x)

    @jax.jit
    @jax.checkpoint
    def batch(x):  # error: TLX008
        return normed(x)

    @jax.jit
    def running(x):
        return normed(x, use_running_average=True)

    @jax.jit
    def writes(x):
        known.count[...] += 1  # error: TLX008
        known.count.set_value(x)  # error: TLX006, TLX008
        known.other = x  # error: TLX008
        return x

    @jax.vmap
    def draws(x):
        return x + jax.random.normal(rngs.params(), x.shape)  # error: TLX008

    @jax.jit
    def harmless(x):
        return plain(x, x), known.evaluate(x)

    @nnx.jit
    def fine(model, x):
        return model(x)

    @jax.jit
    def apart(x):
        graphdef, state = nnx.split(known)
        return nnx.merge(graphdef, state)(x)

    def body(carry, x):  # error: TLX008
        return carry, known(x)

    return lax.scan(body, None, xs), jax.vmap(known)(xs)  # error: TLX008


def branches(model: Counting, x):
    def counted(x):
        model.count[...] += 1  # error: TLX008
        return x

    x = lax.cond(x.sum() > 0, counted, lambda x: x, x)
    return lax.fori_loop(0, 3, lambda k, x: model.evaluate(x), x)


def by_reference(x):
    model = nnx.Variable(jnp.array(0), ref=True)

    @jax.jit
    def step(x):
        model[...] += 1
        return x

    return step(x)


@jax.jit
def updated(optimizer: nnx.Optimizer, model: nnx.Module, grads):  # error: TLX008
    optimizer.update(model, grads)


@jax.jit
def updated_and_returned(optimizer: nnx.Optimizer, model: nnx.Module, grads):
    optimizer.update(model, grads)
    return optimizer, model


@partial(jax.jit, donate_argnums=0)
def measured(average: nnx.metrics.Average, x):  # error: TLX008
    average.update(values=x)


@jax.jit
def read(average: nnx.metrics.Average):
    return average.compute()


class Dropped(nnx.Module):
    def __init__(self, rate, rngs: nnx.Rngs):
        self.never = nnx.Dropout(0.0, rngs=rngs)
        self.without = nnx.Dropout(rate)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        x = jax.checkpoint(self.never)(x)
        x = jax.checkpoint(self.without)(x)
        x = jax.checkpoint(self.norm)(x)
        return lax.map(lambda row: self.drop(row), x)  # error: TLX008

    def layers(self, xs):
        def body(carry, x):  # error: TLX008
            return carry, self.drop(x)

        return lax.scan(f=body, init=None, xs=xs)


@partial(jax.jit, static_argnames=("model",))
def constant(model: Pure, x):  # error: TLX008
    return model(x, x)


@partial(nnx.jit, static_argnums=1)
def unhashable(x, rngs: nnx.Rngs):  # error: TLX008
    return x


@partial(jax.jit, static_argnames="known")
def told_by_its_method(known, x):  # error: TLX008
    return known.checkpointed(x)


@partial(jax.jit, static_argnames=("graphdef", "other"))
def static_and_fine(graphdef, other, state, x):
    return other.apply(nnx.merge(graphdef, state), x)


def compiled(model: Counting, x):
    def run(model: Counting, x):
        return model.evaluate(x)

    return jax.jit(run, static_argnums=0)(model, x)  # error: TLX008


@jax.jit
def handed_on(graphdef, state, x, rngs: nnx.Rngs):  # error: TLX008
    model = nnx.merge(graphdef, state)
    return model(x, rngs=rngs)


@jax.jit
def made(rngs: nnx.Rngs):
    return nnx.state(Counting(rngs=rngs))


def differentiated(x, mesh):
    model = Normed(nnx.Rngs(0))

    def loss(m: Normed):  # error: TLX008
        return m(x).sum()

    return jax.grad(loss)(model)


def with_values(x, mesh):
    def loss(m: Normed):  # error: TLX008
        return m(x).sum()

    return jax.value_and_grad(loss)


def pulled_back(model, x):
    def f(m: Normed):  # error: TLX008
        return m(x)

    def g(m: Normed):  # error: TLX008
        return m(x)

    return jax.vjp(f, model), jax.jvp(g, (model,), (model,))


def sharded(model, x, mesh):
    def f(m: Normed):  # error: TLX008
        return m(x)

    return jax.shard_map(f, mesh=mesh, in_specs=None, out_specs=None)(model)


def merged(params, graphdef, rest, x):
    def loss(params):
        model = nnx.merge(graphdef, params, rest)
        return model(x).sum(), nnx.state(model)

    return jax.value_and_grad(loss, has_aux=True)(params)


@jax.jit
def evaluated_within(model: Normed, x):
    model.eval()
    return model(x)


@jax.jit
def viewed(model: Normed, x):
    model = nnx.view(model, deterministic=True, use_running_average=True)
    return model(x)


def updated_by_closure(model: Pure, x):
    def loss(params):
        nnx.update(model, params)  # error: TLX008
        return model(x, x).sum()

    return jax.value_and_grad(loss)(nnx.state(model, nnx.Param))
