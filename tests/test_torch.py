# SPDX-License-Identifier: Apache-2.0
"""PyTorch's modules and files, into NNX modules and back: they compute the same, and every number is exact.

PyTorch is large, so `make test` does without it; `make compare`, which CI runs, installs it.
"""

from __future__ import annotations

import ast
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.interop import from_torch, to_torch

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Theirs(torch.nn.Module):
    """Layers whose weights lie otherwise than Flax's, and buffers of all sorts."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, (3, 2), groups=1)
        self.up = torch.nn.ConvTranspose2d(4, 2, (2, 3), stride=2)
        self.norm = torch.nn.BatchNorm2d(2)
        self.body = torch.nn.Sequential(torch.nn.LayerNorm(5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        self.embed = torch.nn.Embedding(7, 5)
        self.register_buffer("steps", torch.tensor(2**40 + 1))
        self.register_buffer("narrow", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def images(self, x):
        return self.norm(self.up(self.conv(x)))

    def tokens(self, x):
        return self.body(self.embed(x))


class Norm(nnx.BatchNorm):
    """A norm that keeps PyTorch's count too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_batches_tracked = tallax.Counter()


class Ours(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 2), padding="VALID", rngs=rngs)
        self.up = nnx.ConvTranspose(4, 2, (2, 3), strides=2, padding="VALID", rngs=rngs)
        self.norm = Norm(2, use_running_average=True, rngs=rngs)
        self.body = nnx.Sequential(nnx.LayerNorm(5, epsilon=1e-5, rngs=rngs), nnx.tanh, nnx.Linear(5, 3, rngs=rngs))
        self.embed = nnx.Embed(7, 5, rngs=rngs)
        self.steps = tallax.Counter()
        self.narrow = tallax.Buffer(jnp.zeros(2, jnp.bfloat16))
        self.mask = tallax.Buffer(jnp.zeros(2, bool))
        self.scratch = tallax.Buffer(jnp.zeros(3), persistent=False)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def images(self, x):
        return self.norm(self.up(self.conv(x)))

    def tokens(self, x):
        return self.body(self.embed(x))


X = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)
IDS = np.arange(7).reshape(1, 7)


def theirs():
    """Returns a module whose every number is its own, in evaluation mode."""
    torch.manual_seed(0)
    module = Theirs()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    module.train()
    for _ in range(3):
        module.images(torch.from_numpy(X))
    return module.eval()


def assert_same_outputs(module, model):
    with torch.no_grad():
        images, tokens = module.images(torch.from_numpy(X)).numpy(), module.tokens(torch.from_numpy(IDS)).numpy()
    np.testing.assert_allclose(np.moveaxis(model.images(np.moveaxis(X, 1, -1)), -1, 1), images, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.tokens(IDS), tokens, rtol=1e-4, atol=1e-5)


def sources(module, folder):
    torch.save(module.state_dict(), folder / "a.pt")
    return {"module": module, "state_dict": module.state_dict(), "file": folder / "a.pt"}


@pytest.mark.parametrize("kind", ["module", "state_dict", "file"])
def test_a_module_computes_the_same_as_pytorch_s(kind, tmp_path):
    """Convolutions, their transposes, norms, embeddings; counts exactly; dropout's streams stay."""
    module, model = theirs(), Ours()
    report = from_torch(sources(module, tmp_path)[kind], model)
    assert_same_outputs(module, model)
    assert (int(model.steps), int(model.norm.num_batches_tracked)) == (2**40 + 1, 3)
    assert model.narrow[...].tolist() == [1.5, -2.0]
    assert model.mask[...].tolist() == [True, False]
    assert report.kept == ("model/scratch",)
    assert set(report.missing) == {"model/dropout/rngs/count", "model/dropout/rngs/key"}
    assert ("body.2.weight", "model/body/layers/2/kernel") in report.renamed


def test_a_module_of_pytorch_computes_the_same_as_ours():
    """The way back: `load_state_dict` takes it, strictly, and every number is the same."""
    module, model = theirs(), Ours()
    from_torch(module, model)
    model.steps += 1
    fresh = Theirs().eval()
    fresh.load_state_dict(to_torch(model), strict=True)
    assert_same_outputs(fresh, model)
    assert int(fresh.steps) == 2**40 + 2
    for name, tensor in module.state_dict().items():
        if name != "steps":
            assert torch.equal(tensor, fresh.state_dict()[name]), name
            assert tensor.dtype == fresh.state_dict()[name].dtype


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_square_transposed_convolution_is_turned_as_flax_takes_it(transpose_kernel):
    """A square transposed convolution is flipped as Flax expects, although no shape shows the difference."""
    theirs = torch.nn.ConvTranspose2d(3, 3, (2, 3), stride=2)
    ours = nnx.ConvTranspose(
        3, 3, (2, 3), strides=2, padding="VALID", transpose_kernel=transpose_kernel, rngs=nnx.Rngs(0)
    )
    from_torch(theirs, ours)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(np.moveaxis(ours(np.moveaxis(X, 1, -1)), -1, 1), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(to_torch(ours)["weight"], theirs.weight.detach())


def test_attention_goes_there_and_back():
    """Heads are split and joined; PyTorch's single matrix is split by its owner."""
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state = theirs.state_dict()
    for kind in ("weight", "bias"):
        parts = zip(("query", "key", "value"), state.pop(f"in_proj_{kind}").chunk(3), strict=True)
        state |= {f"{name}.{kind}": part for name, part in parts}
    ours = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    from_torch(state, ours, rename={"out_proj": "out"})
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(*[torch.from_numpy(x)] * 3)[0].numpy()
    np.testing.assert_allclose(ours(x, deterministic=True), expected, rtol=1e-4, atol=1e-5)
    back = to_torch(ours)
    assert all(torch.equal(back[name.replace("out_proj", "out")], tensor) for name, tensor in state.items())
    general = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))
    with pytest.raises(tallax.RestoreError, match=r"(?s)model/kernel.*float32\[4,6\] in the checkpoint"):
        from_torch({"weight": torch.ones(4, 6), "bias": torch.ones(6)}, general)


def test_an_lstm_goes_there_and_back():
    """By the recipe on the page: two biases are one, and the gates are in the same order."""
    theirs, ours = torch.nn.LSTM(4, 6, batch_first=True), nnx.RNN(nnx.OptimizedLSTMCell(4, 6, rngs=nnx.Rngs(0)))
    state = theirs.state_dict()
    state["bias_hh_l0"] = state["bias_hh_l0"] + state.pop("bias_ih_l0")
    names = {"weight_ih_l0": "dense_i.weight", "weight_hh_l0": "dense_h.weight", "bias_hh_l0": "dense_h.bias"}
    from_torch(state, ours.cell, rename=names)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-5)
    back = to_torch(ours.cell)
    assert all(torch.equal(back[new], state[old]) for old, new in names.items())


def test_state_without_weights_is_reported():
    """The table of docs/coming-from-pytorch.md: images, flattening, padding and strides, momentum, epsilons, gelu."""
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.BatchNorm2d(8), torch.nn.GELU(), torch.nn.Flatten(),
        torch.nn.Linear(32, 6), torch.nn.LayerNorm(6),
    )  # fmt: skip
    rngs = nnx.Rngs(0)
    ours = nnx.Sequential(
        nnx.Conv(3, 8, (3, 3), strides=2, padding=1, rngs=rngs), Norm(8, momentum=0.9, rngs=rngs),
        lambda x: nnx.gelu(x, approximate=False), lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
        nnx.Linear(32, 6, rngs=rngs), nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs),
    )  # fmt: skip
    from_torch(theirs, ours)
    x = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32)

    def outputs():
        with torch.no_grad():
            return ours(x.transpose(0, 2, 3, 1)), theirs(torch.from_numpy(x)).numpy()

    theirs.train(), ours.train()
    np.testing.assert_allclose(*outputs(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.layers[1].mean[...], theirs[1].running_mean, rtol=1e-4, atol=1e-6)
    n = 4 * 2 * 2  # PyTorch keeps the unbiased variance, Flax the biased one
    unbiased = 0.9 + (ours.layers[1].var[...] - 0.9) * n / (n - 1)
    np.testing.assert_allclose(unbiased, theirs[1].running_var, rtol=1e-4, atol=1e-6)
    theirs.eval(), ours.eval()
    from_torch(theirs, ours)
    np.testing.assert_allclose(*outputs(), rtol=1e-4, atol=1e-5)


def test_without_a_place_for_the_count_it_is_unexpected():
    """`num_batches_tracked` is unexpected for `nnx.BatchNorm`, and omitted only if requested."""
    norm, ours = torch.nn.BatchNorm1d(2), nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(tallax.RestoreError, match="num_batches_tracked: in the checkpoint, but not in the objects"):
        from_torch(norm, ours)
    assert from_torch(norm, ours, unexpected="ignore").unexpected == ("num_batches_tracked",)


def test_names_may_differ():
    """By beginnings of names, with dots, or by a function."""
    module, model = torch.nn.Sequential(torch.nn.Linear(2, 3)), nnx.Dict(head=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    for rename in ({"0": "head"}, lambda name: name.replace("0.", "head.")):
        from_torch(module, model, rename=rename)
        np.testing.assert_array_equal(model.head.kernel[...], module[0].weight.detach().numpy().T)


def test_a_file_with_code_in_it_does_not_run(tmp_path):
    """`torch.load` gets `weights_only=True`, and its refusal is reported."""

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    torch.save({"weight": Evil()}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"weight": torch.ones(3), "more": {"nested": 3}}, tmp_path / "nested.pt")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for name in ("zip.pt", "pickle.pt"):
        with pytest.raises(tallax.CheckpointError, match="cannot be read as tensors without running code"):
            from_torch(tmp_path / name, model)
    with pytest.raises(tallax.RestoreError, match=r"(?s)^model/kernel.*float32\[3\] in the checkpoint"):
        from_torch(tmp_path / "nested.pt", model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_tensor_without_a_matching_array_is_reported(tmp_path):
    """Without values, sparse, quantized; but a view that PyTorch computes late is as good as any."""
    for tensor, says in (
        (torch.ones(2, device="meta"), "float32, strided, on 'meta'"),
        (torch.ones(2).to_sparse(), "float32, sparse_coo, on 'cpu'"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8, strided"),
    ):
        with pytest.raises(tallax.InvalidTypeError, match=says):
            from_torch({"x": tensor}, nnx.Dict(x=nnx.Param(jnp.zeros(2))))
    model = nnx.Dict(conj=nnx.Variable(jnp.zeros(2, jnp.complex64)), neg=nnx.Variable(jnp.zeros(2)))
    late = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    from_torch({"conj": late, "neg": late.imag}, model)
    assert model.conj[...].tolist() == [1 - 2j, 3 + 4j]
    assert model.neg[...].tolist() == [-2, 4]
    (tmp_path / "old.pt").write_bytes(b"")
    with pytest.raises(tallax.CheckpointError, match="not a zip archive"):
        from_torch(tmp_path / "old.pt", model)
    torch.save(torch.nn.Linear(2, 3), tmp_path / "whole.pt")
    with pytest.raises(tallax.CheckpointError) as caught:
        from_torch(tmp_path / "whole.pt", model)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "bool",
        "uint16",
        "uint32",
        "int8",
        "float16",
        "complex64",
    ],
)
def test_every_dtype_that_both_have_goes_there_and_back(dtype):
    """Every common dtype is bit-equal after a round trip; others raise."""
    bits = np.arange(16, dtype=np.uint8) % 2 if dtype == "bool" else np.arange(16, dtype=np.uint8) * 17
    model, other = (nnx.Dict(x=nnx.Variable(jnp.asarray(x.view(dtype)))) for x in (bits, bits * 0))
    tensors = to_torch(model)
    assert str(tensors["x"].dtype) == f"torch.{dtype}"
    from_torch(tensors, other)
    assert np.asarray(other.x[...]).tobytes() == bits.tobytes()


def test_numbers_that_pytorch_has_not_and_random_keys():
    """4-bit integers raise; a random key that is not a stream's goes as words, and returns as a key."""
    with pytest.raises(tallax.InvalidTypeError, match="x: PyTorch has no such dtype"):
        to_torch(nnx.Dict(x=nnx.Variable(jnp.ones(2, jnp.int4))))
    model, other = (nnx.Dict(key=nnx.Variable(jax.random.key(seed))) for seed in (3, 4))
    from_torch(to_torch(model), other)
    assert jax.random.key_data(other.key[...]).tolist() == jax.random.key_data(model.key[...]).tolist()


def test_a_file_of_safetensors_s_own(tmp_path):
    """A file of the safetensors library is read exactly."""
    library = pytest.importorskip("safetensors.torch")
    module, model = theirs(), Ours()
    library.save_file(module.state_dict(), tmp_path / "a.safetensors")
    from_torch(tmp_path / "a.safetensors", model)
    assert_same_outputs(module, model)
    assert int(model.steps) == 2**40 + 1


# --- what is shared, and what is no tensor ----------------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.again = self.b


class TiedHere(nnx.Module):
    def __init__(self):
        self.a, self.b = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(1))
        self.b.kernel = self.a.kernel
        self.again = self.b


@pytest.mark.parametrize("kind", ["module", "state_dict", "file"])
def test_shared_parameters_go_there_and_back(kind, tmp_path):
    """By every name that they have; of shared modules too, and PyTorch's strict load takes them."""
    theirs, ours = Tied(), TiedHere()
    report = from_torch(sources(theirs, tmp_path)[kind], ours)
    assert report.unexpected == report.missing == ()
    np.testing.assert_array_equal(ours.b.kernel[...], theirs.b.weight.detach().numpy().T)
    assert ours.b.kernel is ours.a.kernel
    fresh = Tied()
    fresh.load_state_dict(to_torch(ours), strict=True)
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    for name in ("a.weight", "b.weight", "again.weight"):  # any one of the names is enough
        state = {key: value for key, value in theirs.state_dict().items() if "weight" not in key or key == name}
        from_torch(state, other := TiedHere())
        np.testing.assert_array_equal(other.a.kernel[...], ours.a.kernel[...])


def test_different_values_of_a_shared_tensor_are_an_error():
    """Both names are in the error, under every policy, and nothing is written."""
    state, ours = Tied().state_dict(), TiedHere()
    before = np.asarray(ours.a.kernel[...])
    for other in (state["a.weight"] + 1, state["a.weight"].double(), torch.ones(3)):
        for policy in ({}, {"missing": "init", "unexpected": "ignore"}):
            with pytest.raises(tallax.RestoreError, match=r"(?s)^model/a/kernel.*'a.weight' and 'b.weight'"):
                from_torch({**state, "b.weight": other}, ours, **policy)
    np.testing.assert_array_equal(ours.a.kernel[...], before)
    same = torch.full((2, 2), torch.nan)
    from_torch({**state, "a.weight": same, "b.weight": same.clone(), "again.weight": same.clone()}, ours)
    untied = nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), b=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    from_torch(Tied(), untied, unexpected=["again"])
    np.testing.assert_array_equal(untied.a.kernel[...], untied.b.kernel[...])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_only_entries_that_have_a_place_are_converted():
    """Any other entry of a `state_dict` is unexpected by its name, like a tensor."""
    import io

    theirs, ours = torch.nn.Linear(2, 2), nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for extra in (
        {"amax_history": 1024}, None, io.BytesIO(b""), 7, "v1", [torch.ones(2)], torch.eye(3).to_sparse(), quantized,
        torch.ones(2, device="meta"), torch.ones(2),
    ):  # fmt: skip
        state = {**theirs.state_dict(), "_extra_state": extra}
        with pytest.raises(tallax.RestoreError, match=r"^_extra_state: in the checkpoint, but not in the objects"):
            from_torch(state, ours)
        for policy in ("ignore", ["_extra_state"], ["**/_extra*"]):
            assert from_torch(state, ours, unexpected=policy).unexpected == ("_extra_state",)
        np.testing.assert_array_equal(ours.kernel[...], theirs.weight.detach().numpy().T)
    for nested in ({"state_dict": theirs.state_dict()}, {"epoch": 3, "model": dict(theirs.state_dict())}):
        with pytest.raises(tallax.InvalidTypeError, match=r"(state_dict|model): a state_dict must contain tensors"):
            from_torch(nested, ours, missing="init", unexpected="ignore")


@pytest.mark.parametrize("value", [np.complex64(3), np.array("x"), np.array([None]), True, torch.tensor(3j), "text"])
def test_other_values_than_counts_are_refused_by_name(value):
    """A value that is not a count raises an error of tallax by name."""
    ours = nnx.Dict(c=tallax.Counter(5))
    with pytest.raises(
        tallax.TallaxError, match=r"^(model/)?c: (the shape or dtype differs from|a state_dict must contain)"
    ):
        from_torch({"c": value}, ours)
    assert int(ours.c) == 5


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: {"old": torch.nn.Linear(2, 2)}, lambda: nnx.Dict(new=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))),
        (
            lambda: {"x": torch.nn.Sequential(torch.nn.Linear(2, 2)), "n": torch.nn.LayerNorm(2)},
            lambda: nnx.Dict(
                y=nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), n=nnx.LayerNorm(2, rngs=nnx.Rngs(0))
            ),
        ),
        (lambda: {"a": torch.nn.Conv2d(2, 3, 2)}, lambda: nnx.Dict(b=nnx.Conv(2, 3, (2, 2), rngs=nnx.Rngs(0)))),
    ],
)
def test_a_hint_works_when_followed_to_the_letter(theirs, ours):
    """The error names both sides as `rename=` does."""
    module, model = torch.nn.ModuleDict(theirs()), ours()
    with pytest.raises(tallax.RestoreError) as caught:
        from_torch(module, model)
    found = re.findall(r"rename=(\{[^}]*\})", str(caught.value))
    report = from_torch(module, model, rename=ast.literal_eval(found[0]))
    assert report.unexpected == report.missing == ()


@pytest.mark.parametrize(
    "target", ["layers.0", "layers/0", "model/layers/0", "model.layers.0", "0.", {"0.weight": "layers.0.kernel"}]
)
def test_a_path_that_an_error_names_is_a_target(target):
    """`nnx.Sequential` has `layers` in the path, PyTorch has not: either is understood, and so is the kernel."""
    rename = target if isinstance(target, dict) else {"0": target.rstrip(".")}
    module, model = torch.nn.Sequential(torch.nn.Linear(2, 2)), nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    from_torch(module, model, rename=rename)
    np.testing.assert_array_equal(model.layers[0].kernel[...], module[0].weight.detach().numpy().T)
    module = torch.nn.ModuleDict({"old": torch.nn.Linear(2, 2)})
    model = nnx.Dict(new=nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    for rename in ({"old": "new.layers.0"}, {"old": "new.0"}, {"old.weight": "new.layers.0.kernel", "old": "new/0"}):
        from_torch(module, model, rename=rename)
        np.testing.assert_array_equal(model.new.layers[0].kernel[...], module["old"].weight.detach().numpy().T)


@pytest.mark.parametrize("wrapper", ["module", "model", "_orig_mod"])
def test_a_wrapper_s_level_is_recognised(wrapper):
    """The prefixes of DistributedDataParallel, Lightning and torch.compile are recognised."""
    theirs, ours = torch.nn.Linear(2, 2), nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    from_torch({f"{wrapper}.{name}": value for name, value in theirs.state_dict().items()}, ours)
    np.testing.assert_array_equal(ours.kernel[...], theirs.weight.detach().numpy().T)


def test_policies_are_those_of_restore():
    """New state starts fresh while a missing parameter is an error, and nothing restored is one."""
    ours = nnx.Dict(layer=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), step=tallax.Counter(4))
    state = {f"layer.{name}": value for name, value in torch.nn.Linear(2, 2).state_dict().items()}
    assert from_torch(state, ours, missing="state").missing == ("model/step",)
    with pytest.raises(tallax.RestoreError, match=r"^model/layer/bias: is not in the checkpoint"):
        from_torch({"layer.weight": state["layer.weight"]}, ours, missing="state")
    with pytest.raises(tallax.RestoreError, match=r"^model: none of its arrays are in the checkpoint"):
        from_torch({"other": torch.ones(3)}, ours, missing="init", unexpected="ignore")
