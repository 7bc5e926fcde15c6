# SPDX-License-Identifier: Apache-2.0
# pyright: strict, reportMissingTypeStubs=false
"""Wrong uses; each line that says so is reported, and no other is: `tests/test_typing.py` compares."""

import tallax
from tallax import Buffer, Counter, Logger, StepCounter, counter_after_n_calls, sinks, statistics

Counter(start="0")  # reportArgumentType
Counter(reduce="max")  # reportArgumentType
Buffer()  # reportCallIssue
Buffer(1.0, reduce="mean")  # reportArgumentType
StepCounter(7)  # reportArgumentType
counter_after_n_calls("0", 5)  # reportArgumentType
Logger(overflow="forget")  # reportArgumentType
statistics.Rate(1.5)  # reportArgumentType
statistics.Rat()  # reportAttributeAccessIssue, reportUnknownMemberType
sinks.Tensorboard("tb")  # reportAttributeAccessIssue, reportUnknownMemberType
tallax.compile_steps(print)  # reportAttributeAccessIssue, reportUnknownMemberType
