# SPDX-License-Identifier: Apache-2.0
"""Where on this machine a sink writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tallax._errors import InvalidValueError, compose

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def place(sink: str, path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine.

    Args:
        sink: what is to write there, for errors.
        path: its path.

    Raises:
        InvalidValueError: it is the address of a store elsewhere, of which a folder of that name would be made here.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise InvalidValueError(
            compose(
                sink,
                "writes to a folder on this machine.",
                got=repr(text),
                fix="a local folder, which `gcloud storage rsync` or `aws s3 sync` copies; or the store mounted as one",
            )
        )
    return Path(path)
