# SPDX-License-Identifier: Apache-2.0
"""The number and size of the collectives of `_scale_programs`, as a formula of devices, counts and sizes."""

from __future__ import annotations

import dataclasses
import math

import tallax
from benchmarks._scale_programs import BINS, WATCH, Layout, Sent

WORD, LIMBS = 4, 8  # bytes of an increment, and of a stored count
FINE = len(tallax.statistics.LogHistogram().counts.get_raw_value())  # the slots of a log-histogram
REDUCED_WORDS = 4  # of a watched tensor: its sum, sum of squares, largest magnitude, and number of zeros
WATCHED_WORDS = {"sent": 13, "stored": 17}  # of one tensor: those of one step, and those of the state of one device


def predicted(layout: Layout, state: str, way: str, devices: int, count: int = 1) -> Sent:
    """Returns the bytes that `added` finds, and the most collectives.

    Under `jit`, XLA sums along each mesh axis in turn.
    """
    if way == "per-replica" or (state == WATCH and layout.parts == 1 and not layout.is_mapped):
        return Sent()
    if state == WATCH and not layout.is_mapped:
        # Tensors that are split along `model`: the hidden values, as output and input, and their gradient; and both
        # kernels, each with its gradient and its update. XLA merges most of the reductions.
        words = (3 + 2 * 3) * REDUCED_WORDS
        return Sent(words, words * WORD)
    if state == WATCH:  # the output of each call and its gradient; each replica has a row in what is summed
        tensors = 2 * (2 * layout.parts - 1)
        return Sent(tensors, tensors * WATCHED_WORDS["sent"] * WORD * devices)
    jitted = way == "jit"
    slots = {"histogram": BINS + 5, "log-histogram": FINE}.get(state, 0)
    sums = {
        "counter": [WORD],
        "rate": [WORD if jitted else LIMBS],
        "histogram": [slots * WORD],
        "log-histogram": [slots * WORD],
        "moments": [16] if jitted else [16, 32],
        "extrema": [8, 8] if jitted else [8, 32],
        "ema": [8, 4] if jitted else [4, 32],
    }[state]
    in_branch = ([4, 4, 8, 16] if jitted else [4, 8, 16, 16]) if state == "moments" else []
    if state == "moments" and layout.is_mapped:
        sums = [*sums, 16]  # with a mask, the entries are counted too
    times = count * (sum(axis is not None for axis in layout.hidden) if jitted else 1)
    return Sent(times * len(sums), times * sum(sums), times * len(in_branch), times * sum(in_branch))


def predicted_reading(state: str, way: str, devices: int, size: int) -> tuple[int, int]:
    """Returns the payload of the collectives of a reading, and the bytes that are copied to each host.

    Args:
        state: the kind of state; a watch is that of one tensor.
        way: one of `WAYS`.
        devices: the number of devices along which there are replicas or rows.
        size: the bytes of the state of one device.
    """
    if state == WATCH:  # the number of updates is the same on all devices, and read as it is
        rows = WATCHED_WORDS["stored"] * WORD * devices
        return rows, rows + LIMBS * (way != "per-replica")
    if way != "per-replica":
        return 0, size
    is_merged = state in ("moments", "extrema", "ema")  # the states of all replicas are gathered, and merged
    return (size * devices, size * devices) if is_merged else (2 * size, size)


@dataclasses.dataclass(frozen=True)
class Network:
    """The assumptions of `seconds`.

    Attributes:
        latency: seconds for one message between neighbours.
        bandwidth: bytes a second that one device sends.
    """

    latency: float = 5e-6
    bandwidth: float = 25e9

    def seconds(self, collectives: int, payload: int, devices: int) -> float:
        """Returns the time of all-reduces that do not overlap with anything: a tree for latency, a ring for bytes."""
        hops = 2 * math.ceil(math.log2(max(devices, 2)))
        return collectives * hops * self.latency + 2 * (devices - 1) / devices * payload / self.bandwidth
