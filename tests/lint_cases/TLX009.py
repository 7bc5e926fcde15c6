"""Counts in callbacks."""

import jax
from flax import nnx
from jax.experimental import io_callback

seen = 0
counts = {"tokens": 0}


class Log:
    def __init__(self):
        self.calls = 0


def note(n):
    global seen
    seen += int(n)


def show(n):
    shown = 0
    shown += int(n)
    print(shown)


@nnx.jit
def step(x):
    log = Log()

    def count(n):
        log.calls += 1

    jax.debug.callback(note, x.size)  # error: TLX009
    jax.debug.callback(count, x.size)  # error: TLX009
    jax.debug.callback(show, x.size)
    jax.debug.callback(lambda n: print(n), x.size)
    io_callback(note, None, x.size, ordered=True)
    return x
