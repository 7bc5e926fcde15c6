# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: a training step that costs the same with one Counter or a thousand.

`nnx.jit` walks the objects at every call, and each Variable is a separate buffer to XLA. Here the objects are flattened
once, and their values stay in the step until `sync()`. One array, the *packed* values, has the words of all counts, and
behind them those of all small Buffers of uint32, such as the summaries of a watch. A count that the step only adds to
enters as a constant zero and leaves as the amount that was added; one addition updates all counts. The words of Buffers
enter as slices of one array, which are joined again after the step (`tallax/variables/_traced_words.py`).

The owner of the state is separate from the steps that run on it:

    compile_step            the objects to bind, and their places                    _binding.py
       v
    CompiledStep            the public class: calls, `read`, `sync`, `collect`       _step.py
       |
       |  arguments         names, static ones, errors that name them                _arguments.py
       |                    marks for static values and bound objects in them        _results.py
       v
    Structure               have the objects changed since the last call?            _structure.py
       |  yes: take over
       v
    Layout, Packing         the place of each Variable among a program's arrays      _layout.py, _packing.py
       |
       v
    Holding                 the state of one step between its calls                  _ownership.py
       |  ^                 ... moved between steps that share Variables             _packing.py
       |  |                 ... copied to the host                                   _reader.py
       v  |
    Program                 the traced function, one for each structure              _traced_step.py
       |                    counts that may stay in two parts                        _jaxpr_analysis.py
    ReadProgram             a function that `read` runs on the state                 _read_program.py
       |                    a proof that it writes nothing                           _unchanged.py
       v
    result                  arrays, and bound objects that are returned              _results.py

    Cell                    for each Variable, the holdings that have its value      _cells.py
    Held                    the placeholder on a Variable that a step owns           tallax/variables/_raw_values.py

The first call makes a layout, a holding and a program, and puts placeholders on the Variables. A call of a step:

    1. compares the attributes of all modules with those at the last call. If they differ, the step takes over again,
       and finds or traces the program for the new structure;
    2. if another step has run on shared Variables, moves references to their arrays here (`Holding.catch_up`), and
       repacks the packed values in one small program;
    3. runs the program, which donates the old state, and swaps in the new state within one C call.

`sync` puts the values back and releases their cells. Steps that share them take over again at their next calls. They
keep their layouts, so they walk the objects only if these have changed (`Layout.renewed`). If a step is deleted, shared
values stay with the other steps, and the rest goes back on the objects.

To make another use of a count fast, open `_jaxpr_analysis.py`. To pack values of another kind, open `_cells.py`
(`Form.is_packed`) and `_packing.py`. To change the accepted arguments, open `_arguments.py`.
To change the state after `sync` or Ctrl-C, open `_ownership.py`. The error for a use of a value that a step owns is in
`tallax/variables/_raw_values.py`; the errors for state that is lost or was written past the step are in `_cells.py`.

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
