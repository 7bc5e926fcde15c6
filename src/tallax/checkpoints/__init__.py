# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in which nothing is dropped, defaulted or cast silently.

Four concepts:

- A *holder* is a Variable of the user's objects, or an array outside of Variables, with its name and a way to write it.
- An *entry* describes one array of a checkpoint: kind, dtype, shape, checksum. The *manifest* has all entries, and the
  values of small tallax variables. It is one more array of the checkpoint, called `tallax`.
- A `State` is the holders and entries of the user's objects. In a restore it is the *target*. A *source* is a
  checkpoint, as entries and arrays.
- A *place* is the name in the target of an array of the source.

`save` splits a `State` into arrays and the manifest (`_collect`, then `_save`), and Orbax writes them. `restore` runs
five stages, one file each; `from_checkpoint` starts at the second with a tree that the caller has read:

    folder --_locate--> outline of the arrays --_manifest--> entries --_plan--> names to read --_fetch--> values
                                                                |                                           |
    objects --_collect--> target -------------------------------+                              _apply writes them

To change | open
--- | ---
the accepted folders of Orbax, and the checks on their files | `_locate`
the format on disk | `_manifest`, and `_serialize` for arrays, keys and names
`missing=`, `unexpected=`, `rename=` | `_policy`
the layouts of other programs (bare, `net/...`), and the `rename=` that an error proposes | `_names`
the comparison of entries, its errors and the report | `_plan`
the devices that arrays are read onto, checksums, old counters that become exact | `_fetch`
writing and resetting the objects, and rolling back | `_apply`
the position of an iterator over the data, as an array | `_positions`
the warning if counts and positions disagree | `_cross_check`
SIGTERM | `_preemption`
a series of checkpoints, the background writer | `_manager`
`tallax show` of a checkpoint | `_inspect`

The invariant: until `_apply`, no stage changes an object, and `_apply` changes all of them or none. New kinds of state
must keep to it: describe the state in `_collect`, compare it in `_plan`, and write it in `_apply`.
`tests/test_checkpoints.py`, `tests/test_damaged_checkpoints.py` and `tests/test_checkpoint_kills.py` guard it: a failed
restore leaves every object as it was, damage is a named error, and a killed writer loses no checkpoint.

Orbax is imported on first use.
"""

from tallax.checkpoints._inspect import shown as shown
from tallax.checkpoints._manager import Checkpoints as Checkpoints
from tallax.checkpoints._plan import RestoreReport as RestoreReport
from tallax.checkpoints._restore import checkpoint_target as checkpoint_target
from tallax.checkpoints._restore import from_checkpoint as from_checkpoint
from tallax.checkpoints._restore import restore as restore
from tallax.checkpoints._save import save as save
from tallax.checkpoints._save import to_checkpoint as to_checkpoint
