# SPDX-License-Identifier: Apache-2.0
"""`local_path`: rejects paths that are not on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tallax._errors import InvalidValueError, compose

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def local_path(sink: str, path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine.

    Args:
        sink: The name of the sink, for errors.
        path: The path of the file or folder.

    Raises:
        InvalidValueError: The path is the address of a remote store. Otherwise a folder `gs:` would be created here.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise InvalidValueError(
            compose(
                sink,
                "can only write to a folder on this machine.",
                got=repr(text),
                fix="a local folder, which `gcloud storage rsync` or `aws s3 sync` copies; or the store mounted as one",
            )
        )
    return Path(path)
