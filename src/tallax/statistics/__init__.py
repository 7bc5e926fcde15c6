# SPDX-License-Identifier: Apache-2.0
"""Statistics that live on the model: a Counter and at most one Buffer each, one protocol for all.

stat.update(x, where=None)    # under any transformation; nothing in eval mode
stat.compute()                # a frozen record: exact on the host, arrays inside a trace
stat.reset(); stat.merge(other)
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
