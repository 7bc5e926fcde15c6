# SPDX-License-Identifier: Apache-2.0
"""The rules of `resumecheck`, and the remedy for each fault by the kind of its value."""

from __future__ import annotations

from tallax.checking._job_values import Value

# Every rule of `resumecheck`. `not-reproducible`, `differs` and `raises` are rules of `statecheck` too.
RESUME_RULES = {
    "reset": "a value starts again from its initial value, or is made anew",
    "left-out": "a value is not there after a restore",
    "doubled": "a value counts something twice: it is restored twice, ahead, or a multiple of the saved one",
    "skipped": "a value is behind, does not change any more, or steps over data",
    "cast": "a value changes its dtype, or went through a narrower one",
    "misplaced": "a value was restored into the place of another one, or in another order",
    "differs": "a value differs, and no other rule explains it",
    "not-resumed": "the second half takes all steps again, or too few",
    "nothing-saved": "the first half leaves no file",
    "returns-nothing": "the job returns nothing that could be compared",
    "not-trained": "nothing that the job returns changes in the second half",
    "not-reproducible": "two uninterrupted runs end differently, so that no resume can be exact",
    "raises": "the job raises, or its file does",
    "exits": "the job ends its process",
    "dies": "the process of the job is killed, or crashes",
    "hangs": "the job does not end in time",
}

_SAVE = (
    "save it with the rest, and restore it: tallax.save stores every Variable of the objects that you pass, and extra= "
    "stores numbers and text"
)
_BY_RULE = {
    "reset": _SAVE,
    "left-out": _SAVE,
    "doubled": "restore it once: if the restore sets it, nothing may step it, add to it or sum its copies afterwards",
    "skipped": "set it to the saved value, and start the loop at the saved step: for n in range(start, steps)",
    "cast": "save and restore it in the dtype that training uses; tallax.restore never casts",
    "misplaced": "restore by name, as tallax.restore does, and not by position or by a sorted list of names",
    "differs": "save and restore it as it is; tallax.save compares every value by its checksum",
}
_RANDOM = (
    "save the random state with the rest: tallax.save(path, model, rngs=rngs) for nnx.Rngs, bit_generator.state for "
    "NumPy, random.getstate() for Python; or derive it from the step: jax.random.fold_in(key, step)"
)
_POSITION = (
    "save the position in the same commit: checkpoints.save(n, model, optimizer, data=iterator), for any iterator with "
    "get_state and set_state"
)
_OPTIMIZER = "save the optimizer too, and restore into both: checkpoints.save(n, model, optimizer)"
_BATCH_STATISTICS = "save the whole state, not nnx.Param alone: checkpoints.save(n, model, optimizer)"
_FROZEN = (
    "restore into the objects that the training step uses, before you make an optimizer, a compiled step or a copy of "
    "them"
)
_OPTIMIZER_WORDS = {"opt", "optimizer", "opt_state", "optim", "optimizer_state", "mu", "nu"}


def remedy(rule: str, path: str, value: Value | None, *, message: str = "") -> str:
    """Returns what to write instead.

    Args:
        rule: of the fault.
        path: of the value.
        value: the value as it was saved.
        message: of the fault; a value that does not change any more needs another remedy than one that is behind.
    """
    kind = "" if value is None else value.kind
    if rule == "skipped" and "does not change" in message:
        return _FROZEN
    if rule in ("reset", "left-out", "differs"):
        if kind == "random" or kind in ("RngCount", "RngKey", "RngState"):
            return _RANDOM
        if kind == "position":
            return _POSITION
        if kind.startswith("Opt") or _OPTIMIZER_WORDS & set(path.lower().split("/")):
            return _OPTIMIZER
        if kind == "BatchStat":
            return _BATCH_STATISTICS
    if rule in ("skipped", "doubled") and kind == "position":
        return _POSITION
    return _BY_RULE.get(rule, _BY_RULE["differs"])
