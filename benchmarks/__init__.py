# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what tallax costs, measured beside what one would use instead.

`make bench`, or `python -m benchmarks [GROUP ...]`, runs the groups below. A new group is a module with a function
`group()` that returns a `benchmarks._timing.Group`, and a line here. A script measures something else than the time of
calls: it has a function `main(["--output", FOLDER, "--quick"])`.
"""

GROUPS = {
    "async-checkpoints": "benchmarks.async_checkpoints",
    "checkpoints": "benchmarks.checkpoints",
    "compile-step": "benchmarks.compile_step",
    "compile-time": "benchmarks.compile_time",
    "differentiation": "benchmarks.differentiation",
    "eager": "benchmarks.eager_counters",
    "imports": "benchmarks.imports",
    "learn": "benchmarks.learn",
    "lint": "benchmarks.lint",
    "logging": "benchmarks.logged_loops",
    "loops": "benchmarks.loops",
    "mixed-state": "benchmarks.mixed_state",
    "positions": "benchmarks.positions",
    "readings": "benchmarks.readings",
    "reads": "benchmarks.reads",
    "real-loops": "benchmarks.real_loops",
    "statistics": "benchmarks.statistics",
    "step-time": "benchmarks.step_time",
    "transformer": "benchmarks.transformer",
    "watch": "benchmarks.watch",
}

SCRIPTS = {
    "first-step": "benchmarks.first_step",
    "memory": "benchmarks.memory",
    "scale": "benchmarks.scale",
    "statecheck": "benchmarks.statecheck",
    "watch-costs": "benchmarks.watch",
}
