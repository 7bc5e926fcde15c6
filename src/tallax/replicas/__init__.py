# SPDX-License-Identifier: Apache-2.0
"""Many devices and processes: what is counted where, a share for each replica, and whether copies still agree.

Under `jit`, arrays are global, and so are counts: a batch that is split over devices (`NamedSharding`, automatic or
explicit axes) is counted whole. Inside `shard_map` an increment is summed over the mesh axes it varies on, in one
all-reduce for each update (`Extrema`, `Ema` and `Moments` say how many they take). Under `jit` XLA sums by itself, and
may take one for each mesh axis.

A step that should not communicate for its counts keeps a share for each replica instead. `per_replica` makes room for
the shares, the step inside `shard_map` stays as it is, and `combine_replicas` reads: it makes the one collective that
all the steps left out.

With several processes the batch has to be one global array, which `jax.make_array_from_process_local_data(sharding, x)`
makes. A process's own NumPy array, handed straight to a compiled step, is taken for the same in all processes: JAX
cannot tell, each process then counts its own part, and "replicated" state drifts apart. `assert_replicated` finds out.
"""

from tallax.replicas._agreement import assert_replicated as assert_replicated
from tallax.replicas._per_replica import combine_replicas as combine_replicas
from tallax.replicas._per_replica import per_replica as per_replica
from tallax.replicas._per_replica import replica_specs as replica_specs
