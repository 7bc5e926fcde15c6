# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: a training step that costs the same with one item or a thousand.

`nnx.jit` walks the objects at every call, and every Variable is a buffer of its own to XLA. Here the objects are
flattened once, and their values live in the step until they are asked for. All counts lie in one array; one that the
step only adds to enters as a constant zero and leaves as what was added, and all of these are added at once.

The owner of the state is apart from the steps that run on it:

    CompiledStep    a function, its arguments and results, its programs           _step, _arguments, _results
    Layout          where each Variable's value lies among a program's arrays     _layout, _packing
    Holding         one step's state between its calls, in that layout            _holding, _reader
    Cell            the owner of one Variable's value: the holdings that bind     _cells
                    it, and the placeholder (`Held`) on the Variable

A first call makes a layout and a holding, and puts placeholders on the Variables. If another step binds some of them,
both holdings are entered in the cells of these, and `Overlap` has their places in both layouts. A value is current in
the holding that caught up last. A call of a step:

    1. looks for changes of the objects, at a few of them at a time;
    2. if another step has run on shared Variables, `Holding.catch_up` moves references to their arrays, and repacks
       the counts in one small program;
    3. runs the program, which consumes the old state and puts the new one in its place within one C call.

`sync` puts values back and releases their cells. Steps that share them take them over again at their next calls. A step
that is dropped leaves shared values to the other steps, and puts the rest back.

Two invariants must not break. At every moment one holding has each current value, also if Ctrl-C comes between two
instructions. And arrays that a step may donate are known to nobody but the holdings. `tests/test_several_steps.py` and
`tests/test_compile_step.py` guard them.
"""

from tallax.compiling._step import CompiledStep as CompiledStep
from tallax.compiling._step import compile_step as compile_step
