# SPDX-License-Identifier: Apache-2.0
"""Whether the counts in a checkpoint agree: examples == batch size * steps, and the position in the data with both.

If they do not, a resume has skipped, repeated or not counted something, or will. It is not an error: a job may change
its batch size on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tallax import _uint64
from tallax._errors import compose
from tallax.checkpoints._manifest import Manifest
from tallax.checkpoints._positions import POSITION, states_in

# By these names iterators and loops count what they have handed out; grain's count elements of the outermost dataset.
_COUNTS_OF_STEPS = ("step", "steps", "num_steps", "global_step")
_COUNTS_OF_EXAMPLES = ("examples", "num_examples", "samples", "num_samples", "examples_seen", "samples_seen")
_COUNTS_OF_EITHER = ("next_index", "batches", "num_batches")


def disagreements(manifest: Manifest, batch_size: int | None) -> list[str]:
    """Returns a message for each count of examples, or position in the data, that does not fit the steps.

    Without a batch size, each count of examples must still be a multiple of the steps.
    """
    counts, positions = {}, {}
    for name, entry in manifest.entries.items():
        if entry.at is not None and entry.kind == "Counter" and entry.shape == (2,):
            counts[name] = int(_uint64.to_uint64(manifest.array(name)))
        elif entry.at is not None and entry.kind == POSITION:
            positions[name] = states_in(manifest.array(name))
    steps_name = min((name for name in counts if _last(name) in _COUNTS_OF_STEPS), key=_depth, default=None)
    if steps_name is None:
        return []
    steps, found = counts[steps_name], []
    numbers = {name: (count, _last(name)) for name, count in counts.items()}
    for name, states in positions.items():
        if len(states) == 1:  # of several processes each has counted its own part
            numbers |= {f"{name}/{path}": (count, _last(path)) for path, count in _integers(states[0])}
    for name, (count, last) in numbers.items():
        if last in _COUNTS_OF_EXAMPLES:
            expected = _expected_examples(count, steps, batch_size)
        elif last in _COUNTS_OF_EITHER:
            fits = count in (steps, steps * batch_size) if batch_size else count == steps or _is_multiple(count, steps)
            sizes = f", or {steps * batch_size} examples" if batch_size else ""
            expected = None if fits else f"{steps} batches{sizes}"
        else:
            continue
        if expected is not None:
            rule = f"does not agree with {steps_name}, so batches are skipped, repeated or not counted."
            fix = "count examples and steps in one place, and save the data with them: save(n, model, data=iterator)"
            found.append(compose(name, rule, got=f"{count} at {steps_name} {steps}", expected=expected, fix=fix))
    return found


def _expected_examples(count: int, steps: int, batch_size: int | None) -> str | None:
    if batch_size is None:
        return None if _is_multiple(count, steps) else f"a multiple of {steps}"
    return None if count == steps * batch_size else f"{steps * batch_size}, for batches of {batch_size}"


def _is_multiple(count: int, steps: int) -> bool:
    return count % steps == 0 if steps else count == 0


def _integers(state: Any) -> Iterator[tuple[str, int]]:
    """Yields the integers at the top of an iterator's state; those of parts of its pipeline count other things."""
    if isinstance(state, dict):
        yield from ((key, entry) for key, entry in state.items() if type(entry) is int)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _depth(name: str) -> tuple[int, str]:
    return name.count("/"), name
