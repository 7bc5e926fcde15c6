# SPDX-License-Identifier: Apache-2.0
"""Finds in source what goes wrong with the state of Flax NNX models: `tallax lint PATH...`. Imports no JAX."""

from tallax_lint._config import Config as Config
from tallax_lint._config import ConfigError as ConfigError
from tallax_lint._finding import Edit as Edit
from tallax_lint._finding import Finding as Finding
from tallax_lint._rule import Rule as Rule
from tallax_lint._run import Report as Report
from tallax_lint._run import lint as lint
from tallax_lint._source import Problem as Problem
