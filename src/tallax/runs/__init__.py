# SPDX-License-Identifier: Apache-2.0
"""What training wrote to disk, read and looked at without JAX: a login node needs no accelerator to show a run.

A record is what a run says about one step. `tallax.Logger` makes records beside the training loop, a sink
(`tallax.sinks`) writes them, and what `tallax.sinks.Jsonl` wrote is read here, as the same records:

    Logger -> Record -> sinks.Jsonl -> records.jsonl -> Run -> tail, plot, show

Nothing in this package imports JAX, Flax or tallax, which take seconds.
"""

from tallax.runs._errors import MissingExtraError as MissingExtraError
from tallax.runs._errors import RunError as RunError
from tallax.runs._errors import TallaxError as TallaxError
from tallax.runs._history import History as History
from tallax.runs._history import Series as Series
from tallax.runs._record import Bins as Bins
from tallax.runs._record import StateInfo as StateInfo
from tallax.runs._record import Record as Record
from tallax.runs._run import Run as Run
