# SPDX-License-Identifier: Apache-2.0
"""Finds in source what goes wrong with the state of Flax NNX models: `tallax lint PATH...`. Imports no JAX."""

from tallax_lint._finding import Edit, Finding
from tallax_lint._rule import Rule

__all__ = ["Edit", "Finding", "Rule"]
