# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: a training step that costs the same with one item or a thousand.

`nnx.jit` walks the objects at every call, and every Variable is a buffer of its own to XLA. Here the objects are
flattened once, and their values live in the step until they are asked for. All counts lie in one array; one that the
step only adds to enters as a constant zero and leaves as what was added, and all of these are added at once.
"""

from tallax.compiling._step import CompiledStep as CompiledStep
from tallax.compiling._step import compile_step as compile_step
