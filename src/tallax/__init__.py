# SPDX-License-Identifier: Apache-2.0
"""Exact, cheap, non-trainable state for Flax NNX models."""

from tallax import statistics as statistics
from tallax._errors import CannotCheckError as CannotCheckError
from tallax._errors import CheckFailedError as CheckFailedError
from tallax._errors import InvalidTypeError as InvalidTypeError
from tallax._errors import InvalidValueError as InvalidValueError
from tallax._errors import MissingExtraError as MissingExtraError
from tallax._errors import ReplacedVariableError as ReplacedVariableError
from tallax._errors import ReplicasError as ReplicasError
from tallax._errors import TallaxError as TallaxError
from tallax._errors import TracedReadError as TracedReadError
from tallax._errors import TraceError as TraceError
from tallax._module import Module as Module
from tallax._variables import Buffer as Buffer
from tallax._variables import Counter as Counter
from tallax.checking import statecheck as statecheck
from tallax.counters import StepCounter as StepCounter
from tallax.counters import counter_after_n_calls as counter_after_n_calls
from tallax.differentiation import grad as grad
from tallax.differentiation import value_and_grad as value_and_grad
from tallax.optimizers import ClipByGlobalNormState as ClipByGlobalNormState
from tallax.optimizers import ClipCounts as ClipCounts
from tallax.optimizers import clip_by_global_norm as clip_by_global_norm
from tallax.optimizers import clip_counts as clip_counts
from tallax.optimizers import scheduled as scheduled
from tallax.replicas import assert_replicated as assert_replicated
from tallax.replicas import combine_replicas as combine_replicas
from tallax.replicas import per_replica as per_replica
from tallax.replicas import replica_specs as replica_specs
from tallax.schedules import Scheduled as Scheduled
