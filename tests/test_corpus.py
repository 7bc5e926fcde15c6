# SPDX-License-Identifier: Apache-2.0
"""The corpus that judges `tallax.statecheck`: every module in it is made and runs."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.corpus.case import RULES, build, run
from tests.right_modules import RIGHT
from tests.wrong_modules import ARGUABLE, WRONG

CASES = WRONG | ARGUABLE | RIGHT


pytestmark = pytest.mark.usefixtures("standard_promotion")


def _found(node, path):
    """Returns what a slash-joined path leads to; raises where it leads nowhere."""
    for part in path.split("/"):
        if isinstance(node, nnx.List):
            node = node[int(part)]
        elif isinstance(node, dict | nnx.State):
            node = node[part]
        else:
            node = getattr(node, part)
    return node


RAISING = {"value-written-in-a-closure", "counter-value-written-in-a-closure"}  # in a plain call, too


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(RAISING))
def test_a_write_in_a_closure_raises(name):
    """A plain call of these raises, with Flax's error or ours, so they do not run twice."""
    with pytest.raises(flax.errors.TraceContextError):
        run(CASES[name], build(CASES[name]))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES if name not in RAISING])
def test_runs_eagerly_twice(name):
    """Each is made, called twice, and has the attribute that is said to be at fault."""
    case = CASES[name]
    model = build(case)
    first, second = run(case, model), run(case, model)
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(second))
    if getattr(case, "path", None) not in (None, "output"):
        _found(model, case.path)


def test_the_corpus_is_whole():
    """Every rule is broken by some module, and every module says why."""
    assert not set(WRONG) & set(RIGHT)
    assert set().union(*(case.rules for case in WRONG.values())) == RULES
    assert all(case.why for case in (WRONG | ARGUABLE).values())
    # These are named by no other rule of their own, so each rule is found for what it is.
    alone = set().union(*(case.rules for case in WRONG.values() if len(case.rules) == 1))
    assert alone >= RULES - {"counted-twice", "differs", "frozen-value", "raises"}
