# SPDX-License-Identifier: Apache-2.0
"""From a training loop to the sinks, without stopping it."""

from tallax.logging._logger import Logger as Logger
