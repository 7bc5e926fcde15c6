# SPDX-License-Identifier: Apache-2.0
"""State of other libraries, into NNX modules and out of them; each library is imported by its own file, on first use.

| from | into a module | out of it |
|---|---|---|
| PyTorch: a module, a `state_dict`, a `.pt` or a `.safetensors` file | `from_torch` | `to_torch` |
| Flax Linen: the variables of a module | `from_linen` | `to_linen` |

As with `tallax.restore`, everything is compared first, nothing is cast, and nothing is done by half.
"""

from tallax.interop._linen import from_linen as from_linen
from tallax.interop._linen import to_linen as to_linen
from tallax.interop._torch import from_torch as from_torch
from tallax.interop._torch import to_torch as to_torch
