"""Intermediates taken out of a model that sowed them outside of nnx.capture."""

from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


class Loss(nnx.Variable):
    pass


def harvest(gate: Gate, x):
    gate(x)
    found = nnx.pop(gate, nnx.Intermediate)  # error: TLX019
    kept = nnx.state(gate, nnx.Intermediate)  # error: TLX019
    return found, kept, nnx.pop(gate, Loss), nnx.state(gate, nnx.Param), nnx.state(gate)
