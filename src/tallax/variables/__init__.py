# SPDX-License-Identifier: Apache-2.0
"""`Buffer` and `Counter`: the Variables that hold state which training needs and nobody trains.

They are plain `nnx.Variable`s of types of their own: a filter such as `nnx.Param` passes them by, and every Flax
transformation threads them. What they add is discipline. A write keeps shape, dtype and weak type, or raises and leaves
the value as it was; no gradient flows in or out; the value is never mutated in place, since `nnx.state(model)` shares
it.

Where the value is: until a compiled program has returned it, it is a NumPy array, so nothing here touches an
accelerator at construction and an eager increment is a few microseconds of host work. A value that a compiled program
returned is a `jax.Array`. If that is ready and not placed on purpose, an eager increment takes it back to the host;
otherwise the increment is dispatched to the device, so that counting never waits for a running step. While a compiled
step (`tallax.compile_step`) owns the value, a `Held` stands in its place, and inside the step's trace a `Pending`.
"""

from tallax.variables._base import PerReplica as PerReplica
from tallax.variables._base import StateVariable as StateVariable
from tallax.variables._buffer import Buffer as Buffer
from tallax.variables._casts import refuse_cast as refuse_cast
from tallax.variables._count_inputs import as_shape as as_shape
from tallax.variables._counter import Counter as Counter
from tallax.variables._owned import Held as Held
from tallax.variables._traced_count import AT_MOST as AT_MOST
from tallax.variables._traced_count import READ as READ
from tallax.variables._traced_count import Pending as Pending
