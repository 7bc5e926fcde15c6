# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: a training step that costs the same with one Counter or a thousand.

`nnx.jit` walks the objects at every call, and each Variable is a separate buffer to XLA. Here the objects are flattened
once, and their values stay in the step until `sync()`. One array, the *packed* values, has the words of all counts, and
behind them those of all small Buffers of uint32, such as the summaries of a watch. A count that the step only adds to
enters as a constant zero and leaves as the amount that was added; one addition updates all counts. The words of Buffers
enter as slices of one array, which are joined again after the step (`tallax/variables/_traced_words.py`).

The owner of the state is separate from the steps that run on it:

    compile_step            checks the objects to bind                               _compile_step.py
       v
    CompiledStep            the public class: calls, `read`, `sync`, `collect`       _compiled_step.py
       |
       |  arguments         names, static ones, errors that name them                _arguments.py
       |                    marks for static values and bound objects in them        _results.py
       v
    BoundObjects            taken apart; have they changed since the last call?      _bound_objects.py
       |  Owner             on each Variable, in the place of its value              _owners.py
       |  Layout            the place of each value in the state                     _layout.py
       v
    Holding                 the state of one step between its calls                  _holding.py
       |  ^                 ... moved between steps that share Variables             _overlap.py
       |  |                 ... copied to the host                                   _reader.py
       v  |
    Program                 the traced function, one for each structure              _step_program.py
       |                    the counts that a step only adds to                      _count_uses.py
    ReadProgram             a function that `read` runs on the state                 _read_program.py
       |                    a proof that it writes nothing                           _unchanged_outputs.py
       v
    result                  arrays, and bound objects that are returned              _results.py

The state is three things (`State`): the packed values; arrays of other small tallax variables, which a step does not
overwrite, so that they are read without a copy; and all other arrays, which it does. A `Layout` does not refer to the
objects, so programs keep no value alive. An `Owner` knows the place of its value in each holding that has it. It
returns the value to its Variable, and raises for every other use (`tallax/variables/_placeholder.py`).

The first call makes a layout, a holding and a program, and puts owners on the Variables. A call of a step:

    1. compares the attributes of all modules with those at the last call. If they differ, the step takes over again,
       and finds or traces the program for the new structure;
    2. if another step has run on shared Variables, moves references to their arrays here (`Holding.catch_up`), and
       repacks the packed values in one small program;
    3. runs the program, which donates the old state, and swaps in the new state within one C call.

`sync` puts the values back and releases their owners. Steps that share them take over again at their next calls. They
keep their layouts, so they walk the objects only if these have changed (`BoundObjects.renewed`). If a step is deleted,
shared values stay with the other steps, and the rest goes back on the objects.

To make another use of a count fast, open `_count_uses.py`. To pack values of another kind, open `_owners.py`
(`Form.of`) and `_layout.py` (`Packing`). To change the accepted arguments, open `_arguments.py`. To change the state
after `sync` or Ctrl-C, open `_holding.py`. The errors for state that is lost or was written past the step are in
`_owners.py`.

Four invariants must not break:

- At every moment one holding has each current value, also if Ctrl-C comes between two bytecodes
  (`tests/test_compile_step.py`, `tests/test_several_steps.py`).
- No code outside the holdings has a reference to an array that a step may donate (`tests/test_several_steps.py`).
- The program that runs is the one for the objects as they are now, as with `nnx.jit` (`tests/test_host_actions.py`, and
  after a `sync` `tests/test_step_binding.py`).
- A read changes nothing, and its results outlive the next steps (`tests/test_step_read.py`).
"""

from tallax.compiling._compile_step import compile_step as compile_step
from tallax.compiling._compiled_step import CompiledStep as CompiledStep
