# SPDX-License-Identifier: Apache-2.0
"""Exact, cheap, non-trainable state for Flax NNX models.

A name is imported from its module when it is first asked for: a script that uses one counter waits for neither
checkpoints nor statecheck. Type checkers read the imports below; a test compares them with the tables.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallax import checking as checking
    from tallax import checkpoints as checkpoints
    from tallax import compiling as compiling
    from tallax import counters as counters
    from tallax import differentiation as differentiation
    from tallax import interop as interop
    from tallax import logging as logging
    from tallax import optimizers as optimizers
    from tallax import reading as reading
    from tallax import replicas as replicas
    from tallax import schedules as schedules
    from tallax import sinks as sinks
    from tallax import statistics as statistics
    from tallax._errors import CannotCheckError as CannotCheckError
    from tallax._errors import CheckFailedError as CheckFailedError
    from tallax._errors import CheckpointError as CheckpointError
    from tallax._errors import HeldError as HeldError
    from tallax._errors import InvalidTypeError as InvalidTypeError
    from tallax._errors import InvalidValueError as InvalidValueError
    from tallax._errors import MissingExtraError as MissingExtraError
    from tallax._errors import ReplacedVariableError as ReplacedVariableError
    from tallax._errors import ReplicasError as ReplicasError
    from tallax._errors import RestoreError as RestoreError
    from tallax._errors import RunInUseError as RunInUseError
    from tallax._errors import SinkError as SinkError
    from tallax._errors import StructureError as StructureError
    from tallax._errors import TallaxError as TallaxError
    from tallax._errors import TracedReadError as TracedReadError
    from tallax._errors import TraceError as TraceError
    from tallax._module import Module as Module
    from tallax._version import __version__ as __version__
    from tallax.checking import statecheck as statecheck
    from tallax.checkpoints import Checkpoints as Checkpoints
    from tallax.checkpoints import RestoreReport as RestoreReport
    from tallax.checkpoints import checkpoint_target as checkpoint_target
    from tallax.checkpoints import from_checkpoint as from_checkpoint
    from tallax.checkpoints import restore as restore
    from tallax.checkpoints import save as save
    from tallax.checkpoints import to_checkpoint as to_checkpoint
    from tallax.compiling import CompiledStep as CompiledStep
    from tallax.compiling import compile_step as compile_step
    from tallax.counters import StepCounter as StepCounter
    from tallax.counters import counter_after_n_calls as counter_after_n_calls
    from tallax.differentiation import grad as grad
    from tallax.differentiation import value_and_grad as value_and_grad
    from tallax.logging import Logger as Logger
    from tallax.optimizers import ClipByGlobalNormState as ClipByGlobalNormState
    from tallax.optimizers import ClipCounts as ClipCounts
    from tallax.optimizers import clip_by_global_norm as clip_by_global_norm
    from tallax.optimizers import clip_counts as clip_counts
    from tallax.optimizers import scheduled as scheduled
    from tallax.reading import Reading as Reading
    from tallax.reading import collect as collect
    from tallax.reading import snapshot as snapshot
    from tallax.replicas import assert_replicated as assert_replicated
    from tallax.replicas import combine_replicas as combine_replicas
    from tallax.replicas import per_replica as per_replica
    from tallax.replicas import replica_specs as replica_specs
    from tallax.runs import Run as Run
    from tallax.runs import RunError as RunError
    from tallax.schedules import Scheduled as Scheduled
    from tallax.variables import Buffer as Buffer
    from tallax.variables import Counter as Counter
else:  # so that a type checker reports a name that is not there
    from tallax._lazy import lazily as _lazily

    _MODULES = {"checking", "checkpoints", "compiling", "counters", "differentiation", "interop", "logging"}
    _MODULES |= {"optimizers", "reading", "replicas", "schedules", "sinks", "statistics"}
    _NAMES = {
        "tallax._errors": (
            "CannotCheckError CheckFailedError CheckpointError HeldError InvalidTypeError InvalidValueError "
            "MissingExtraError ReplacedVariableError ReplicasError RestoreError RunInUseError SinkError "
            "StructureError TallaxError TracedReadError TraceError"
        ),
        "tallax._module": "Module",
        "tallax.variables": "Buffer Counter",
        "tallax._version": "__version__",
        "tallax.checking": "statecheck",
        "tallax.checkpoints": "Checkpoints RestoreReport checkpoint_target from_checkpoint restore save to_checkpoint",
        "tallax.compiling": "CompiledStep compile_step",
        "tallax.counters": "StepCounter counter_after_n_calls",
        "tallax.differentiation": "grad value_and_grad",
        "tallax.logging": "Logger",
        "tallax.optimizers": "ClipByGlobalNormState ClipCounts clip_by_global_norm clip_counts scheduled",
        "tallax.reading": "Reading collect snapshot",
        "tallax.replicas": "assert_replicated combine_replicas per_replica replica_specs",
        "tallax.schedules": "Scheduled",
        "tallax.runs": "Run RunError",
    }
    _HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
    __all__ = sorted({"interop", "sinks", "statistics", *_HOMES} - {"__version__"})  # it is not for `import *`

    __getattr__, __dir__ = _lazily(__name__, _HOMES, _MODULES)
