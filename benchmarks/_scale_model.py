# SPDX-License-Identifier: Apache-2.0
"""The number and size of the collectives of `_scale_programs`, as a formula of devices, counts and sizes."""

from __future__ import annotations

import dataclasses
import math

import tallax
from benchmarks._scale_programs import BINS, WATCH, Layout, Sent

WORD, LIMBS = 4, 8  # bytes of an increment, and of a stored count
FINE = len(tallax.statistics.LogHistogram().counts.get_raw_value())  # the slots of a log-histogram
WATCHED_WORDS = {"sent": 6, "stored": 15}  # of one tensor: those of one step, and those of the state of one device


def predicted(layout: Layout, state: str, way: str, devices: int, count: int = 1) -> Sent | None:
    """Returns the bytes that `added` finds, and the most collectives; None if there is no formula.

    Under `jit`, XLA sums along each mesh axis in turn. A histogram is counted in 64 tables there, which XLA adds up
    between the devices before it adds up the tables. Inside `shard_map` only its slots are sent.
    """
    if way == "per-replica" or (state == WATCH and layout.parts == 1 and not layout.is_mapped):
        return Sent()
    if state == WATCH and not layout.is_mapped:
        return None
    if state == WATCH:  # the output of each call and its gradient; each replica has a row in what is summed
        tensors = 2 * (2 * layout.parts - 1)
        return Sent(tensors, tensors * WATCHED_WORDS["sent"] * WORD * devices)
    jitted = way == "jit"
    tables = 64 if jitted else 1
    slots = {"histogram": BINS + 5, "log-histogram": FINE}.get(state, 0) + jitted
    sums = {
        "counter": [WORD],
        "rate": [WORD if jitted else LIMBS],
        "histogram": [tables * slots * WORD],
        "log-histogram": [tables * slots * WORD],
        "moments": [16] if jitted else [16, 32],
        "extrema": [8, 8] if jitted else [8, 32],
        "ema": [8, 4] if jitted else [4, 32],
    }[state]
    in_branch = ([4, 4, 8, 16] if jitted else [4, 8, 16, 16]) if state == "moments" else []
    if state == "moments" and layout.is_mapped:
        sums = [*sums, 16]  # with a mask, the entries are counted too
    times = count * (sum(axis is not None for axis in layout.hidden) if jitted else 1)
    return Sent(times * len(sums), times * sum(sums), times * len(in_branch), times * sum(in_branch))


def predicted_reading(state: str, way: str, devices: int, size: int, tensors: int) -> tuple[int, int]:
    """Returns the payload of the collectives of a reading, to 2 percent, and the bytes that are copied to each host.

    Args:
        state: the kind of state.
        way: one of `WAYS`.
        devices: the number of devices along which there are replicas or rows.
        size: the bytes of the state of one device.
        tensors: the number of tensors that are watched.
    """
    if state == WATCH:
        rows = tensors * WATCHED_WORDS["stored"] * WORD * devices
        return 2 * rows, rows + tensors * LIMBS
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
