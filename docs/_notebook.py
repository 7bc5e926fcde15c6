# SPDX-License-Identifier: Apache-2.0
"""Runs a page's cells in a fresh kernel, and writes the notebook with what they printed.

    python docs/_notebook.py docs/tutorial.md docs/tutorial.ipynb

What would differ from machine to machine or from day to day is left out, so that the same outputs make the same file.
"""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

CELL_SECONDS, START_SECONDS = 240, 60


def main(page: str, written: str) -> None:
    """Runs a page, and writes it as a notebook.

    Args:
        page: Markdown, as jupytext reads it.
        written: the file to write.
    """
    notebook = jupytext.read(page)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            {f"JUPYTER_{of}_DIR": f"{folder}/{of}" for of in ("CONFIG", "DATA", "RUNTIME")},
            IPYTHONDIR=f"{folder}/ipython",  # no profile and no history of whoever runs this
            MPLBACKEND="module://matplotlib_inline.backend_inline",
            TMPDIR=folder,  # what the cells leave goes with it
        )
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            startup_timeout=START_SECONDS,
            record_timing=False,
            config=Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"}),  # and no ports
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}  # not which Python ran it
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    Path(written).write_text(nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
