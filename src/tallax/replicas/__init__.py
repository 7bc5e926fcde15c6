# SPDX-License-Identifier: Apache-2.0
"""State on many devices and in many processes: per-replica state, and checks that copies agree.

Under `jit`, arrays are global, and so are counts: a batch that is split over devices is counted as a whole, with
automatic and with explicit mesh axes. XLA sums by itself and may use one all-reduce for each mesh axis. Inside
`shard_map` an increment is summed over the mesh axes that it varies on, in one all-reduce per update (`Extrema`, `Ema`
and `Moments` document how many they use).

If a step must not communicate for its counts, each replica can have its own state:

1. `per_replica(model, mesh, axis_name)` returns a copy of the model. Every tallax variable in it, except replicated
   ones, has one value per replica, concatenated on the first axis. The first replica starts from the counts so far, the
   others start from the identity of the reduction.
2. `replica_specs(model)` returns the specs for `shard_map`. Inside it, each replica sees and writes its own value.
3. `combine_replicas(model)` returns a copy with one value per variable: the one collective that all steps left out.
   Counts are summed exactly, buffers combine by their `reduce`, and statistics with a buffer are merged.

With several processes the batch must be one global array, as `jax.make_array_from_process_local_data(sharding, x)`
makes it. If each process passes its own NumPy array to a compiled step, JAX assumes that all processes pass the same
array. Each process then counts its own part, and replicated state drifts apart. `assert_replicated` detects this.

Which file to open: `_per_replica.py` for the three functions, `_agreement.py` for `assert_replicated`. The metadata of
a variable with per-replica state is a `tallax.variables.PerReplica`. `tallax._mesh_axes` decides which increments are
summed over which axes.

The invariant: an increment is summed over each axis that it varies on, and over no other, with or without per-replica
state. `tests/test_per_replica.py` checks it on one, two and three mesh axes.
"""

from tallax.replicas._agreement import assert_replicated as assert_replicated
from tallax.replicas._per_replica import combine_replicas as combine_replicas
from tallax.replicas._per_replica import per_replica as per_replica
from tallax.replicas._per_replica import replica_specs as replica_specs
