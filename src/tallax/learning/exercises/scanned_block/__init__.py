# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a scan with a broadcast counter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claims, Wrong, close, expect, expect_count, number

CLAIMS = Claims()
NAMES = ("Block", "run")


def _rows(length: int) -> jax.Array:
    # The largest output is in the middle, so that neither the first nor the last row alone has it.
    return jnp.stack([jnp.array([1.0, -1.0]) * (0.1 + (k == length // 2)) for k in range(length)])


def _apart(block: Any, xs: jax.Array) -> np.ndarray:
    layer = nnx.clone(block.layer)
    return np.stack([np.tanh(np.asarray(layer(x))) for x in xs])


@CLAIMS("the outputs are those of the block, row by row")
def _outputs(solution: ModuleType) -> None:
    block, xs = solution.Block(nnx.Rngs(0)), _rows(5)
    expect(solution.run(block, xs), _apart(block, xs), "outputs")


@CLAIMS("after run, the state is that of five plain calls")
def _state(solution: ModuleType) -> None:
    block, xs = solution.Block(nnx.Rngs(0)), _rows(5)
    solution.run(block, xs)

    def wrong(calls: int) -> str:
        return "runs_twice" if calls > 5 else "vmapped" if calls == 1 else "lost"

    expect_count(block, "calls", 5, "after 5 rows", wrong)
    outputs = np.abs(_apart(block, xs))
    is_of_last = close(number(block.peak), outputs[-1].max())
    expect(block.peak, outputs.max(), "peak_of_last" if is_of_last else "peak_lost")


@CLAIMS("other lengths and a second run are right")
def _other_lengths(solution: ModuleType) -> None:
    block = solution.Block(nnx.Rngs(0))
    try:
        outputs = solution.run(block, _rows(3))
    except Exception as error:
        raise Wrong("fixed_length", f"3 rows raise {type(error).__name__}", "3 outputs") from error
    if outputs.shape != (3, 2):
        raise Wrong("fixed_length", f"the outputs of 3 rows have the shape {outputs.shape}", "(3, 2)")
    expect_count(block, "calls", 3, "after 3 rows", "fixed_length")
    solution.run(block, _rows(4))
    expect_count(block, "calls", 7, "after 3 and 4 rows", "overwrites")


@CLAIMS("the block alone decides how much it counts")
def _block_decides(solution: ModuleType) -> None:
    class CountsTwice(solution.Block):  # pyright: ignore[reportUntypedBaseClass]
        def __call__(self, x: Any) -> Any:
            self.calls[...] += 1
            return super().__call__(x)

    block = CountsTwice(nnx.Rngs(0))
    solution.run(block, _rows(3))
    expect_count(block, "calls", 6, "if a block counts each row twice, after 3 rows", "by_hand")


@CLAIMS("the loop is traced once")
def _one_loop(solution: ModuleType) -> None:
    executions = 0

    class Watched(solution.Block):  # pyright: ignore[reportUntypedBaseClass]
        def __call__(self, x: Any) -> Any:
            nonlocal executions
            executions += 1
            return super().__call__(x)

    block, xs = Watched(nnx.Rngs(0)), _rows(12)
    outputs = solution.run(block, xs)
    if executions > 6:  # a scan traces its body up to four times
        raise Wrong("unrolled", f"Python runs the block {executions} times for 12 rows", "a loop that is traced once")
    if not close(outputs, _apart(block, xs)):
        raise Wrong("outputs", "12 rows give other outputs", "those of the block")
