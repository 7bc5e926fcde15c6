# SPDX-License-Identifier: Apache-2.0
"""Sinks: they write the records of a run. A sink is imported at first use, and so is the package that it needs.

| sink | writes to | resuming at a step | extra |
|---|---|---|---|
| `Jsonl(path)` | a file, one line for each record | moves existing records of that step and later aside | |
| `TensorBoard(logdir)` | an event file | makes TensorBoard hide them | `tensorboard` |
| `Console()` | the terminal, as a live table | | `console` |
| `Parquet(path)` | a table, for data frames and SQL | like `Jsonl` | `parquet` |
| `WandB(**init)` | a run of Weights & Biases | keeps existing steps, and leaves out new records of them | `wandb` |
| `MLflow(experiment=...)` | a run of MLflow | like `WandB` | `mlflow` |
| `Clu(writer)` | one of clu's metric writers | depends on the writer | |
| metrax's logging backends | | depends on the backend | |

Any object with `write(record)` and `close()` is a sink: see `Sink`.

A record goes through three kinds of files:

1. `_sink` defines the protocol, and `as_sink` turns the arguments of a Logger into sinks.
2. One file for each sink encodes and writes: `_jsonl`, `_tensorboard`, `_parquet`, `_console`, `_wandb`, `_mlflow`, and
   `_adapters` for other libraries' writers. A sink opens its file or run at its first record, because the step of that
   record is the step at which the run starts or resumes.
3. Shared parts: `_partial_writes` writes a record without the values that cannot be encoded. `_local_files` appends
   whole pieces, keeps a second program out, and rejects addresses of remote stores.

To add a sink, write one file with a class like `_jsonl.Jsonl`, and list it in `__init__.pyi`.

Invariants: when `write` returns, the record survives `kill -9` (as far as the service allows), and one bad value never
loses the others. The kill tests in `tests/test_jsonl.py`, `tests/test_tensorboard.py` and `tests/test_parquet.py` guard
the first, and `tests/test_unwritable.py` the second.
"""

from tallax._lazy import lazily as _lazily

__getattr__, __dir__, __all__ = _lazily(__name__, __file__)
