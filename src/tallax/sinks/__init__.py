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

from tallax._lazy import lazily as _lazily

__getattr__, __dir__, __all__ = _lazily(__name__, __file__)
