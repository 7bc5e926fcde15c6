# SPDX-License-Identifier: Apache-2.0
"""The rules, one file for each family, in the order of their codes."""

from __future__ import annotations

from tallax.lint._check import CHECKS
from tallax.lint._rule import Rule
from tallax.lint.rules import (
    callbacks,
    containers,
    filters,
    lost,
    narrow_counters,
    optimizer_calls,
    parameters,
    python_counters,
    references,
    replaced,
    sow,
    static,
    sync,
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
)

__all__ = ["CHECKS", "RULES", "static"]
