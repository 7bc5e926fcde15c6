# SPDX-License-Identifier: Apache-2.0
from tallax.runs import Bins as Bins
from tallax.runs import Record as Record
from tallax.runs import StateInfo as StateInfo
from tallax.sinks._adapters import Clu as Clu
from tallax.sinks._console import Console as Console
from tallax.sinks._jsonl import Jsonl as Jsonl
from tallax.sinks._mlflow import MLflow as MLflow
from tallax.sinks._parquet import Parquet as Parquet
from tallax.sinks._sink import Sink as Sink
from tallax.sinks._sink import as_sink as as_sink
from tallax.sinks._tensorboard import TensorBoard as TensorBoard
from tallax.sinks._wandb import WandB as WandB
