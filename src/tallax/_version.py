# SPDX-License-Identifier: Apache-2.0
"""Which version this is, as the package that is installed says."""

from importlib import metadata

try:
    __version__ = metadata.version("tallax")
except metadata.PackageNotFoundError:  # a source tree on the path
    __version__ = "0+source"
