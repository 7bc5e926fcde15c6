# SPDX-License-Identifier: Apache-2.0
"""Converts state between NNX modules and other libraries. Each library is imported by its own file, at first use.

| from | into a module | out of it |
|---|---|---|
| PyTorch: a module, a `state_dict`, a `.pt` or a `.safetensors` file | `from_torch` | `to_torch` |
| Flax Linen: the variables of a module | `from_linen` | `to_linen` |

As in `tallax.restore`, everything is compared before the first write, and nothing is cast.
"""

from tallax.interop._linen import from_linen as from_linen
from tallax.interop._linen import to_linen as to_linen
from tallax.interop._torch import from_torch as from_torch
from tallax.interop._torch import to_torch as to_torch
