# SPDX-License-Identifier: Apache-2.0
"""Finds in source what goes wrong with the state of Flax NNX models: `tallax lint PATH...`. Imports no JAX."""

from tallax.lint._config import Config as Config
from tallax.lint._config import ConfigError as ConfigError
from tallax.lint._finding import Edit as Edit
from tallax.lint._finding import Finding as Finding
from tallax.lint._lint import Report as Report
from tallax.lint._lint import lint as lint
from tallax.lint._rule import Rule as Rule
from tallax.lint._source import Problem as Problem
