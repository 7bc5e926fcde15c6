# SPDX-License-Identifier: Apache-2.0
"""The version of the installed package."""

from importlib import metadata

try:
    __version__ = metadata.version("tallax")
except metadata.PackageNotFoundError:  # a source tree on the path
    __version__ = "0+source"
