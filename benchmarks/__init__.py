# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what tallax costs, measured beside what one would use instead.

`make bench`, or `python -m benchmarks [GROUP ...]`, runs the groups below. A new group is a module with a function
`group()` that returns a `benchmarks._timing.Group`, and a line here.
"""

GROUPS = {
    "differentiation": "benchmarks.differentiation",
    "eager": "benchmarks.eager_counters",
    "statistics": "benchmarks.statistics",
}
