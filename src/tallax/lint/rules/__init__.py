# SPDX-License-Identifier: Apache-2.0
"""The rules, one file for each family, in the order of their codes."""

from __future__ import annotations

from tallax.lint._check import CHECKS
from tallax.lint._rule import Rule
from tallax.lint.rules import (
    callbacks,
    closures,
    constant_randomness,
    containers,
    filters,
    harvested_sow,
    lost,
    mode_flags,
    narrow_counters,
    optimizer_calls,
    parameters,
    python_counters,
    references,
    replaced,
    sow,
    static,
    sync,
    transformed_objects,
    unused_noqa,
    value,
    weak,
)

RULES: tuple[Rule, ...] = (
    parameters.RULE,
    replaced.RULE,
    sync.RULE,
    narrow_counters.RULE,
    weak.RULE,
    value.RULE,
    python_counters.RULE,
    lost.RULE,
    callbacks.RULE,
    filters.RULE,
    references.RULE,
    sow.RULE,
    optimizer_calls.RULE,
    containers.RULE,
    closures.RULE,
    transformed_objects.RULE,
    constant_randomness.RULE,
    mode_flags.RULE,
    harvested_sow.RULE,
    unused_noqa.RULE,
)

__all__ = ["CHECKS", "RULES", "static"]
