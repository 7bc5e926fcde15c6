# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in which nothing is dropped, defaulted or cast in silence.

`to_checkpoint` takes objects apart into a tree of arrays and a manifest that names each; `from_checkpoint` compares
that with the objects before it touches them. `save` and `restore` do so with a folder of Orbax's, and `Checkpoints`
with a series of them. Orbax itself is imported on first use.
"""

from tallax.checkpoints._apply import checkpoint_target as checkpoint_target
from tallax.checkpoints._apply import from_checkpoint as from_checkpoint
from tallax.checkpoints._inspect import shown as shown
from tallax.checkpoints._manager import Checkpoints as Checkpoints
from tallax.checkpoints._restore_report import RestoreReport as RestoreReport
from tallax.checkpoints._storage import restore as restore
from tallax.checkpoints._storage import save as save
from tallax.checkpoints._to_tree import to_checkpoint as to_checkpoint
