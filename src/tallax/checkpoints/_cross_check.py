# SPDX-License-Identifier: Apache-2.0
"""Whether the counts in a checkpoint agree: examples == batch size * steps, and the position in the data with both.

If they do not, a resume has skipped, repeated or not counted something, or will. It is not an error: a job may change
its batch size on purpose.
"""

from __future__ import annotations

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
            states = states_in(manifest.array(name))
            if len(states) == 1 and isinstance(states[0], dict):  # of several processes each has counted its own part
                # Only the integers at the top: those of parts of the pipeline count other things.
                positions |= {f"{name}/{key}": count for key, count in states[0].items() if type(count) is int}
    steps_names = [name for name in counts if _last(name) in _COUNTS_OF_STEPS]
    if not steps_names:
        return []
    steps_name = min(steps_names, key=lambda name: (name.count("/"), name))
    steps, found = counts[steps_name], []
    examples = None if batch_size is None else steps * batch_size
    for name, count in (counts | positions).items():
        fits = count == examples if examples is not None else count % steps == 0 if steps else count == 0
        if _last(name) in _COUNTS_OF_EXAMPLES:
            expected = f"a multiple of {steps}" if examples is None else f"{examples}, for batches of {batch_size}"
        elif _last(name) in _COUNTS_OF_EITHER:
            fits = fits or count == steps
            expected = f"{steps} batches" if examples is None else f"{steps} batches, or {examples} examples"
        else:
            continue
        if not fits:
            rule = f"does not agree with {steps_name}, so batches are skipped, repeated or not counted."
            fix = "count examples and steps in one place, and save the data with them: save(n, model, data=iterator)"
            found.append(compose(name, rule, got=f"{count} at {steps_name} {steps}", expected=expected, fix=fix))
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]
