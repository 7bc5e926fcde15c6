# SPDX-License-Identifier: Apache-2.0
"""Where the records of a run go. A sink is imported when it is first used, and so is the package that it needs.

| sink | writes to | resuming at a step | extra |
|---|---|---|---|
| `Jsonl(path)` | a file, one line for each record | takes out what is there of that step and later | |
| `TensorBoard(logdir)` | an event file | tells TensorBoard to hide that | `tensorboard` |
| `Console()` | the terminal, as a live table | | `console` |
| `Parquet(path)` | a table, for data frames and SQL | as `Jsonl` does | `parquet` |
| `WandB(**init)` | a run of Weights & Biases | keeps what is there, and leaves out those steps | `wandb` |
| `MLflow(experiment=...)` | a run of MLflow | likewise | `mlflow` |
| `Clu(writer)` | one of clu's metric writers | as the writer does | |
| metrax's logging backends, as they are | | as the backend does | |

Anything with a `write(record)` and a `close()` is a sink: see `Sink`.
"""

from typing import TYPE_CHECKING

from tallax.runs import Bins as Bins
from tallax.runs import Item as Item
from tallax.runs import Record as Record
from tallax.sinks._sink import Sink as Sink
from tallax.sinks._sink import as_sink as as_sink

if TYPE_CHECKING:
    from tallax.sinks._adapters import Clu as Clu
    from tallax.sinks._console import Console as Console
    from tallax.sinks._jsonl import Jsonl as Jsonl
    from tallax.sinks._mlflow import MLflow as MLflow
    from tallax.sinks._parquet import Parquet as Parquet
    from tallax.sinks._tensorboard import TensorBoard as TensorBoard
    from tallax.sinks._wandb import WandB as WandB
else:  # so that a type checker reports a name that is not there
    from tallax._lazy import lazily as _lazily

    _FILES = {
        "Clu": "_adapters",
        "Console": "_console",
        "Jsonl": "_jsonl",
        "MLflow": "_mlflow",
        "Parquet": "_parquet",
        "TensorBoard": "_tensorboard",
        "WandB": "_wandb",
    }
    __getattr__, __dir__ = _lazily(__name__, {name: f"{__name__}.{file}" for name, file in _FILES.items()})
