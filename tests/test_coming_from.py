# SPDX-License-Identifier: Apache-2.0
"""The PyTorch side of docs/coming-from-pytorch.md, beside the page's own side; `make compare` installs PyTorch."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "coming-from-pytorch.md"


def test_the_module_of_pytorch_and_the_one_of_tallax():
    """The two modules on the page count, average, compute, stop in evaluation and bring their state over alike."""
    torch = pytest.importorskip("torch")
    page = PAGE.read_text()
    theirs, ours = {"torch": torch}, {"jnp": jnp, "nnx": nnx, "tallax": tallax}
    exec(re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)[0], theirs)
    exec(re.findall(r"^class Gate\(tallax.*?\n\n\n", page, flags=re.DOTALL | re.MULTILINE)[0], ours)
    theirs, ours = theirs["Gate"](), ours["Gate"](nnx.Rngs(0))
    tallax.interop.from_torch(theirs, ours)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

    def both(times):
        for _ in range(times):
            with jax.numpy_rank_promotion("allow"):  # a mean is subtracted from a batch
                np.testing.assert_allclose(ours(jnp.asarray(x)), theirs(torch.tensor(x)).detach(), atol=1e-5)
        assert int(ours.step) == theirs.step.item()
        np.testing.assert_allclose(ours.mean[...], theirs.mean, rtol=1e-5)

    both(3)
    theirs.eval(), ours.eval()
    both(2)
    theirs.train(), ours.train()
    both(1)
    assert int(ours.step) == 4
    assert sorted(tallax.interop.to_torch(ours)) == sorted(theirs.state_dict())


def test_a_write_in_place_and_a_read():
    """The rows of the table that write and read do so on both sides."""
    torch = pytest.importorskip("torch")
    module, bias, step = torch.nn.Module(), tallax.Buffer(jnp.zeros(4)), tallax.Counter()
    module.register_buffer("bias", torch.zeros(4))
    module.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)
    module.bias.copy_(torch.ones(4)), module.bias.__setitem__(0, 2.0)
    bias[...] = jnp.ones(4)
    bias[0] = 2.0
    module.step += 1
    step += 1
    np.testing.assert_array_equal(bias[...], module.bias)
    assert int(step) == module.step.item() == 1
    assert set(module.state_dict()) == {"bias"}
    assert not list(module.parameters())
