"""The form of nnx.Optimizer that Flax 0.11 removed."""

import optax
from flax import nnx
from flax.nnx import Optimizer


def make(model, tx, options):
    plain = nnx.Optimizer(model, tx, wrt=nnx.Param)  # error: TLX013
    words = nnx.Optimizer(model, tx=optax.sgd(0.1), wrt=nnx.Param)  # error: TLX013
    alone = Optimizer(model, tx)  # error: TLX013
    grouped = nnx.Optimizer(model, (tx))  # error: TLX013
    right = nnx.Optimizer(model, tx, wrt=nnx.Param)
    by_place = nnx.Optimizer(model, tx, nnx.Param)
    unknown = nnx.Optimizer(model, tx, **options)
    kept = nnx.ModelAndOptimizer(model, tx)
    return plain, words, alone, grouped, right, by_place, unknown, kept


def train(model, optimizer, both: nnx.ModelAndOptimizer, metrics: nnx.MultiMetric, grads):
    made = Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    made.update(grads)  # error: TLX013
    made.update(grads=grads)  # error: TLX013
    optimizer.update(grads)
    optimizer.update(model, grads)
    optimizer.update(model=model, grads=grads)
    both.update(grads)
    metrics.update(grads)
    {}.update(grads)


def annotated_as_either(optimizer: nnx.Optimizer, grads):
    optimizer.update(grads)
