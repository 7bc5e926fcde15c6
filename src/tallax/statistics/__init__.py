# SPDX-License-Identifier: Apache-2.0
"""Statistics: modules that own tallax variables and are updated with data.

Every statistic has one protocol:

    stat.update(x, where=None)    # works under any transformation; does nothing in eval mode
    stat.compute()                # a frozen record: exact numbers on the host, arrays inside a trace
    stat.reset(); stat.merge(other)

The state of a statistic is one `Counter`, and one `Buffer` if counts alone are not enough. `merge` is associative, and
a statistic that was reset is its identity, so parts of a stream and replicas can be combined in any grouping.

An update goes through these steps:

1. `Statistic.update` returns if `deterministic` is set, checks that the state was not cast, and converts `x` and
   `where` (`_host.py` brings 64-bit numbers from the host to 32 bits without wrapping).
2. The statistic reduces `x` to a few numbers in one compiled function: `_bincount.py` for histograms, `_powersums.py`
   for moments.
3. Inside `shard_map` these numbers are summed over the mesh axes that `x` varies on (`tallax._mesh_axes`).
4. The `Counter` is incremented. `Counts` is the base of statistics that end here: `Rate`, `Histogram` and
   `LogHistogram`.
5. The `Buffer` is updated. `CountsAndBuffer` is the base of `Activity`, `Ema`, `Extrema` and `Moments`: a subclass
   implements the reset value, the update and the merge of its buffer, and the base class does everything else.

`compute` passes the state, from the host or traced, to `read`, which makes the record. `tallax.collect` and `Logger`
call `read` too, with copies from the device.

Which file to open:

- the protocol, checks of inputs, merging, display: `_statistic.py`
- one statistic: the file with its name; the mathematics of `Moments` is in `_central.py` (the union of two states) and
  `_two_floats.py` (sums of float32 pairs)
- plots of histograms: `_plotting.py`

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
