# SPDX-License-Identifier: Apache-2.0
"""`watch`: statistics of the tensors inside a model that nobody edited.

Concepts. A *site* is a watched module; its state, a `Site`, lies in one attribute of the module, called `:`. A *role*
is a tensor of a site: `input`, `output`, `output_gradient`, or of a Param `kernel:parameter`, `kernel:gradient`,
`kernel:update`. Each role has a statistic, by default a `Summary`. A *stack* is a module that `nnx.vmap` made: its
statistics are stacks, too.

The way of a tensor into its statistic:

    outputs, inputs     _watched_classes  the module's class is a subclass of its own class, whose method calls
                        _site             Site.observe with the arguments and the result
    gradients of        _site             Site.with_tap passes the output through
    outputs             _tap              an identity, whose backward rule sees the gradient
    parameters,         _watched_classes  the optimizer's class is a subclass whose `update` calls
    gradients, updates  _params           before and after
    all of them         _many_tensors     tensors of a step are reduced, small ones together
                        _reduction        the numbers of a tensor
                        _lanes            numbers that can be added up
                        _summary_updates  the numbers of all sites are added to their states together
                        _summary_words    the state of one, 17 words
                        _summary          the statistic with these words

Inside `tallax.value_and_grad` a tensor that a site sees once, outside of any transformation, goes to the `Collector` of
the pass. Within a transformation a site adds lanes to a Variable that exists during the forward pass (`Site.attach`),
and the lanes of a gradient are the cotangent of a token. `Site.absorb` then adds those of all sites to their states at
once, and counts one update.

Compilation is the largest cost of a watch. XLA's CPU backend needs 10 to 25 ms for each kernel that is not a reduction
by its library and that is not equal to another one; a concatenation of two thousand scalars takes a second. So only the
four reductions of a tensor are done one by one, everything else is done for all tensors together, and a compiled step
packs the words of all summaries into one array, behind its counts, of which `variables.stack` and `variables.cut` read
and write all rows at once.

Presets. A `Preset` is a number with a name in the field, such as dead units, the modules that it applies to, and a
function that makes its statistic (`_presets`). It is an object, and no flag of `watch` like `outputs=True`, because it
has sites of its own (routers, attention, layers before a ReLU), and arguments of its own. Its statistic is a
`StepStatistic` (`_step_statistic`): a table of counts, sums and largest values for each unit, head or expert.
`_preset_statistics` has the tensors that each preset takes, the numbers of them, and the record. They take the way of
`outputs` and `updates` above; a property of the watched class sees the calls of an attention function in an attribute.
`_coordinate_check` watches the outputs of a model at several widths.

`_maker` makes the sites, `_select` reads `sites=`, `_stacks` finds the axes of stacks, `_placing` puts the state on a
mesh, `_watch` has the public function and class, `_table` prints, and `_notes` keeps the reasons why a site could not
be seen.

To watch another kind of tensor, open `_site` or `_params`; to add a preset, `_presets` and `_preset_statistics`; to
compute another number of a summary, `_reduction`, `_lanes` and `_summary_words`, and `_tap` for its encoding as a sum;
to change which tensors are reduced together, `_many_tensors`.

Invariants. A watched model is trained by the same operations as the model without a watch, in every mode and under
every transformation; only the last bit may differ, if XLA fuses them differently. No statistic may raise within a
training step: if a site cannot be seen, there is a note. A step of data-parallel or fully sharded training has no
collective more. `tests/test_watch.py`, `tests/test_watch_sizes.py`, `tests/test_watch_presets.py` and
`tests/test_watch_meshes.py` guard them.
"""

from tallax.watching._coordinate_check import CoordinateCheckResult as CoordinateCheckResult
from tallax.watching._coordinate_check import coordinate_check as coordinate_check
from tallax.watching._preset_statistics import AttentionResult as AttentionResult
from tallax.watching._preset_statistics import DeadUnitsResult as DeadUnitsResult
from tallax.watching._preset_statistics import ExpertLoadResult as ExpertLoadResult
from tallax.watching._preset_statistics import MassiveActivationsResult as MassiveActivationsResult
from tallax.watching._presets import Preset as Preset
from tallax.watching._presets import attention as attention
from tallax.watching._presets import dead_units as dead_units
from tallax.watching._presets import expert_load as expert_load
from tallax.watching._presets import massive_activations as massive_activations
from tallax.watching._presets import update_ratio as update_ratio
from tallax.watching._summary import SummaryResult as SummaryResult
from tallax.watching._watch import Watch as Watch
from tallax.watching._watch import watch as watch
