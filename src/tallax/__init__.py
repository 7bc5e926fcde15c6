# SPDX-License-Identifier: Apache-2.0
"""Exact, cheap, non-trainable state for Flax NNX models.

`__init__.pyi` lists every public name. A name is imported at first use, so a script that uses one counter waits for
neither checkpoints nor statecheck, and `tallax lint` starts without JAX.
"""

from tallax._lazy import lazily as _lazily

__getattr__, __dir__, __all__ = _lazily(__name__, __file__)
