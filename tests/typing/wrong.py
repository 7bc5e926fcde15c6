# SPDX-License-Identifier: Apache-2.0
# pyright: strict, reportMissingTypeStubs=false
"""Wrong uses; each line that says so is reported, and no other is: `tests/test_typing.py` compares."""

import jax
from flax import nnx

import tallax
from tallax import Buffer, Counter, Logger, StepCounter, counter_after_n_calls, sinks, statistics

Counter(start="0")  # reportArgumentType
Counter(reduce="max")  # reportArgumentType
Buffer()  # reportCallIssue
Buffer(1.0, reduce="mean")  # reportArgumentType
StepCounter(7)  # reportArgumentType
counter_after_n_calls("0", 5)  # reportArgumentType
Logger(overflow="forget")  # reportArgumentType
statistics.Rate(1.5)  # reportArgumentType
statistics.Rat()  # reportAttributeAccessIssue, reportUnknownMemberType
sinks.Tensorboard("tb")  # reportAttributeAccessIssue, reportUnknownMemberType


def train_step(model: nnx.Linear, x: jax.Array) -> jax.Array:
    return model(x)


def steps(model: nnx.Linear, x: jax.Array) -> None:
    step = tallax.compile_step(train_step, model)
    step()  # reportCallIssue
    step(x, x)  # reportCallIssue
    step("x")  # reportArgumentType
    step(y=x)  # reportCallIssue
    tallax.compile_step(train_step, bound=model)(model)  # reportCallIssue
    tallax.compile_step(train_step, x)  # reportArgumentType
    step(x).no_such_attribute()  # reportAttributeAccessIssue, reportUnknownMemberType


tallax.compile_steps(print)  # reportAttributeAccessIssue, reportUnknownMemberType
