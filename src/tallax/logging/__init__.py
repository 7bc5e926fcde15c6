# SPDX-License-Identifier: Apache-2.0
"""`Logger`: from a training loop to the sinks, without waiting for the device.

Concepts: a *capture* is everything that one call passed, with its copy to the host under way. A *record*
(`tallax.runs.Record`) is one step as plain numbers and bins. A *sink* writes records. An *omission* is a value that a
record is written without. A *clock* counts the steps of a run on the host.

The path of a record:

    thread of the training loop
      1. _logger      Logger.__call__ compares a step with a threshold, and usually returns.
      2. _step_clock  The clock of the run decides whether a record is due.
      3. _capture     Starts one copy of the state to the host. Nothing is waited for, and donating an array later does
                      not change what was captured. Bad arguments raise here, before anything is copied.
      4. _writer      Writer.put appends the capture to a bounded queue (capacity, overflow).
    thread of the Writer
      5. _capture     Captured.record waits for the copy, and
      6. _flatten     turns values into scalars and bins with one name each.
      7. _writer      passes the record to each sink (`tallax.sinks`), and collects failures and omissions.
    thread of the training loop, at the next call
      8. _writer      Writer.report warns of new omissions (_omissions words them) and raises failures as `SinkError`.

To change when a call is logged, open `_step_clock`, then `Logger._look`. To change how a type is written, open
`_flatten`. To change the arguments that a call accepts, open `_capture`. To change what happens if sinks are slow or
fail, open `_writer`.

Invariants: no call but the first of a run waits for the device. A value that cannot be written never ends the loop and
never removes the other values of its record. `test_logging_does_not_wait_for_the_device` in `tests/test_logger.py`
guards the first, `tests/test_unwritable.py` the second, and `tests/test_step_clock.py` the steps of the records.
"""

from tallax.logging._logger import Logger as Logger
