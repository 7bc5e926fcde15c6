# SPDX-License-Identifier: Apache-2.0
"""`Counter` and `Buffer`: the tallax variables, for state that a model needs and no optimizer trains.

Both are subclasses of `nnx.Variable`, so `nnx.Param` filters do not select them, and every Flax transformation threads
them. Three rules hold for both. A write keeps shape, dtype and weak type, or raises and leaves the value as it was. No
gradient flows in or out. The array is never mutated in place, because `nnx.state(model)` shares it.

The raw value of a variable is in one of four places:

1. On the host, as a NumPy array, from construction until a compiled program returns the value. An eager increment takes
   a few microseconds there, and nothing touches an accelerator.
2. On the device, as a `jax.Array`. If the array is ready and not committed, an eager increment moves it back to the
   host. Otherwise the increment is dispatched to the device, so counting never waits for a running step.
3. In a trace, as a tracer. Inside the trace of a compiled step a count is a `TwoPartCount`: the words before the step,
   and a word that was added since.
4. In a compiled step (`tallax.compile_step`) between its calls. A `Placeholder` then takes the place of the value: it
   returns the current value to the variable, and raises for all others.

A count is two uint32 words on the last axis, at most 2**64 - 1. All arithmetic on them is in `tallax._uint64`. Compiled
steps pack the words of all counts into one array, with the two words on the first axis, and those of small uint32
Buffers behind them.

Which file to open:

- `.value`, guarded writes, display: `_base.py` (`StateVariable`); checks of metadata: `_metadata.py`
- `increment`, `count`, `every`, reading, comparing, setting: `_counter.py` (`Counter`)
- where an addition happens, and exact words, also for reads by `nnx.to_pure_dict` and `nnx.bridge`; state that was cast
  from outside: `_count_storage.py`
- checks and conversions of increments: `_count_inputs.py`
- arrays, dtypes and in-place operators: `_buffer.py` (`Buffer`)
- state that a compiled step owns: `_placeholder.py`; counts and small uint32 Buffers in its trace: `_traced_state.py`

The invariant: a count is exact, or saturated at 2**64 - 1, after every sequence of writes in every transformation and
mode. `tests/test_laws.py` states it, and `tests/test_counter.py` compares with Python integers.
"""

from tallax.variables._base import StateVariable as StateVariable
from tallax.variables._buffer import Buffer as Buffer
from tallax.variables._count_inputs import as_shape as as_shape
from tallax.variables._count_storage import refuse_cast as refuse_cast
from tallax.variables._counter import Counter as Counter
from tallax.variables._metadata import PerReplica as PerReplica
from tallax.variables._placeholder import Placeholder as Placeholder
from tallax.variables._placeholder import no_value as no_value
from tallax.variables._traced_state import AT_MOST as AT_MOST
from tallax.variables._traced_state import READ as READ
from tallax.variables._traced_state import TwoPartCount as TwoPartCount
from tallax.variables._traced_state import cut as cut
from tallax.variables._traced_state import is_tracing_step as is_tracing_step
from tallax.variables._traced_state import join as join
from tallax.variables._traced_state import stack as stack
from tallax.variables._traced_state import tracing_step as tracing_step
