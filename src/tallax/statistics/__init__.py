# SPDX-License-Identifier: Apache-2.0
"""Statistics: modules that own tallax variables and are updated with data.

Every statistic has one protocol:

    stat.update(x, where=None)    # works under any transformation; does nothing in eval mode
    stat.compute()                # a frozen record: exact numbers on the host, arrays inside a trace
    stat.reset(); stat.merge(other)

The state of a statistic is one `Counter`, and one `Buffer` if counts alone are not enough. `merge` is associative, and
a statistic that was reset is its identity, so parts of a stream and replicas can be combined in any grouping.

An update goes through these steps:

1. `Statistic.update` (`_statistic.py`) returns if `deterministic` is set, checks that the state was not cast, and
   converts `x` and `where` (`_conversions.py` brings 64-bit numbers from the host to 32 bits without wrapping).
2. `_accumulate` (`_counts.py`) finds the axes to reduce, and inside `shard_map` the mesh axes that `x` varies on
   (`tallax._mesh_axes`), over which the numbers of a batch are summed.
3. `Counts` is the base of `Rate`, `Histogram` and `LogHistogram`: `_counted` reduces `x` to counts; the `Counter` is
   incremented. `CountsAndBuffer` is the base of `Activity`, `Ema`, `Extrema` and `Moments`: `_updated` reduces `x` and
   returns the new state of both in one compiled program. These functions are in the file of the statistic;
   `_bincount.py` counts for the histograms, `_power_sums.py` sums for `Moments`.

`compute` passes the state, from the host or traced, to `read`, which makes the record. `tallax.collect` and `Logger`
call `read` too, with copies from the device.

Which file to open:

- the protocol, checks of inputs, merging, display: `_statistic.py`; the two forms of a statistic: `_counts.py`
- one statistic: the file with its name; the mathematics of `Moments` is in `_moments_state.py` (a union of states) and
  `_two_floats.py` (sums of float32 pairs)
- stacks and plots of histograms: `_binned.py`

The invariant: counts are exact integers, so entries that were counted add up to the entries that were fed, also across
merges and replicas. `tests/test_statistics.py` and `tests/test_laws.py` check it for every statistic.
"""

from tallax.statistics._activity import Activity as Activity
from tallax.statistics._activity import ActivityResult as ActivityResult
from tallax.statistics._ema import Ema as Ema
from tallax.statistics._ema import EmaResult as EmaResult
from tallax.statistics._extrema import Extrema as Extrema
from tallax.statistics._extrema import ExtremaResult as ExtremaResult
from tallax.statistics._histogram import Histogram as Histogram
from tallax.statistics._histogram import HistogramResult as HistogramResult
from tallax.statistics._log_histogram import LogHistogram as LogHistogram
from tallax.statistics._log_histogram import LogHistogramResult as LogHistogramResult
from tallax.statistics._moments import Moments as Moments
from tallax.statistics._moments import MomentsResult as MomentsResult
from tallax.statistics._rate import Rate as Rate
from tallax.statistics._rate import RateResult as RateResult
from tallax.statistics._statistic import Statistic as Statistic
