# SPDX-License-Identifier: Apache-2.0
"""State of Linen and of files of tensors, into NNX modules and back; test_comparisons.py has PyTorch itself."""

from __future__ import annotations

import ast
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import tallax
from tallax.interop import from_linen, from_torch, to_linen


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class LinenModel(nn.Module):
    """The variables of a Linen user: parameters, batch statistics and a counter of their own."""

    @nn.compact
    def __call__(self, x, train=True):
        step = self.variable("counters", "step", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            step.value += 1
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(nn.relu(x))


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(1)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.99, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.step = tallax.Counter()

    def __call__(self, x):
        return self.second(nnx.relu(self.dropout(self.norm(self.first(x)))))


RENAME = {"Dense_0": "first", "BatchNorm_0": "norm", "Dense_1": "second"}
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def linen_variables(calls=3):
    module = LinenModel()
    variables = module.init(jax.random.key(0), X)
    for _ in range(calls):
        _, changed = module.apply(variables, X, mutable=["batch_stats", "counters"])
        variables = {**variables, **changed}
    return module, variables


def test_linen_variables_go_into_a_module_and_back():
    """All collections are converted, an int32 counter exactly; the module computes the same as in Linen."""
    module, variables = linen_variables()
    model = Model()
    report = from_linen(variables, model, rename=RENAME)
    assert int(model.step) == 3
    assert report.converted == ("model/step: int32 -> exact count",)
    assert set(report.missing) == {"model/dropout/rngs/count", "model/dropout/rngs/key"}  # which Linen has not
    model.eval()
    np.testing.assert_array_equal(model(X), module.apply(variables, X, train=False))
    back = to_linen(model, rename={new: old for old, new in RENAME.items()})
    assert jax.tree.structure(back) == jax.tree.structure(jax.tree.map(np.asarray, {**variables}))
    jax.tree.map(np.testing.assert_array_equal, back, {**variables})
    assert back["counters"]["step"].dtype == np.int32


def test_linen_that_does_not_fit():
    """Different names or shapes, counts that do not fit, and other objects than collections raise."""
    _, variables = linen_variables(0)
    model = Model()
    with pytest.raises(tallax.RestoreError, match="model/first/bias, model/first/kernel, model/norm/bias and 5 more"):
        from_linen(variables, model)
    with pytest.raises(tallax.InvalidTypeError, match="requires a dict of collections of variables"):
        from_linen({"params": jnp.ones(3)}, model)
    with pytest.raises(tallax.InvalidValueError, match="two collections have a variable of this name"):
        from_linen({"params": {"step": jnp.ones(3)}, "counters": {"step": jnp.ones(3)}}, model)
    model.step.set(2**31)
    with pytest.raises(tallax.InvalidValueError, match="does not fit into int32, the dtype of a count in Linen"):
        to_linen(model)
    with pytest.raises(tallax.CheckpointError, match=r"^kernel: has no value in the tree"):
        from_linen(
            jax.eval_shape(lambda: {"params": {"kernel": jnp.ones(2)}}), nnx.Dict(kernel=nnx.Param(jnp.zeros(2)))
        )
    keyed = nnx.Dict(key=nnx.Variable(jax.random.key(1)))
    from_linen({"state": {"key": jax.random.key(2)}}, keyed)
    assert keyed.key[...] == jax.random.key(2)
    boxed = nn.with_partitioning(nn.initializers.ones, (None, "model"))(jax.random.key(0), (2, 3))
    layer = nnx.Dict(kernel=nnx.Param(jnp.zeros((2, 3))))
    from_linen({"params": {"kernel": boxed}}, layer)
    assert layer.kernel[...].sum() == 6


def test_names_that_only_linen_has_are_not_renamed():
    """It is unexpected, and nothing more; the policies are those of `restore`."""
    layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
    fp8 = {"Dense_0": {"Fp8_0": {"input_scale": jnp.ones(1)}}}
    variables = {"params": {"Dense_0": layer}, "_overwrite_with_gradient": fp8}
    model = nnx.Dict(Dense_0=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), seen=tallax.Counter())
    name = "Dense_0/Fp8_0/input_scale"
    report = from_linen(variables, model, unexpected="ignore", missing="state")
    assert report.unexpected == (name,)
    assert [new for _, new in report.renamed] == list(report.restored)
    assert str(report).count(name) == 1
    for policy in ([name], ["Dense_0/Fp8*"], ["**/input_scale"]):
        assert from_linen(variables, model, unexpected=policy, missing=["**/seen"]).unexpected == (name,)
    with pytest.raises(tallax.RestoreError, match=f"^{name}: in the checkpoint, but not in the objects"):
        from_linen(variables, model, missing="state")
    with pytest.raises(tallax.RestoreError, match=r"^model: none of its arrays are in the checkpoint"):
        from_linen({"params": {"x": {"y": jnp.ones(5)}}}, model, missing="init", unexpected="ignore")


def test_a_hint_for_linen_works_when_followed_to_the_letter():
    """The `rename=` in the error distinguishes layers by their shapes, and has no names of collections."""
    module, variables = linen_variables()
    model = Model()
    with pytest.raises(tallax.RestoreError, match=r"rename=\{") as caught:
        from_linen(variables, model)
    found = re.findall(r"rename=(\{[^}]*\})", str(caught.value))
    assert ast.literal_eval(found[0]) == {old: f"model/{new}" for old, new in RENAME.items()}
    from_linen(variables, model, rename=ast.literal_eval(found[0]))
    np.testing.assert_array_equal(model.eval() or model(X), module.apply(variables, X, train=False))


def test_a_shared_variable_has_linen_s_name_for_either():
    """A layer with two attributes is found under both of Linen's names."""
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    for name in ("a", "b"):
        model = nnx.Dict(a=layer, b=layer)
        from_linen({"params": {name: {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}}}, model)
        assert model.b.kernel[...].sum() == 12


# --- files of tensors -------------------------------------------------------------------------------------------------


def safetensors(path, **arrays):
    """Writes a file as the format's description has it."""
    header, data = {"__metadata__": {"by": "hand"}}, b""
    kinds = {"float32": "F32", "int64": "I64", "bfloat16": "BF16", "bool": "BOOL"}
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        header[name.replace("__", ".")] = {
            "dtype": kinds[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


class Torchlike(nnx.Module):
    def __init__(self):
        self.body = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
        self.half = tallax.Buffer(jnp.zeros(2, jnp.bfloat16))
        self.num_batches_tracked = tallax.Counter()
        self.position = tallax.Buffer(np.zeros(3, np.int32))


def arrays():
    rng = np.random.default_rng(0)
    return {
        "body__0__weight": rng.normal(size=(4, 3)).astype(np.float32),
        "body__0__bias": np.ones(4, np.float32),
        "body__2__weight": rng.normal(size=(2, 4)).astype(np.float32),
        "body__2__bias": np.ones(2, np.float32),
        "half": np.array([1.5, -2.0], jnp.bfloat16),
        "num_batches_tracked": np.array(2**40 + 1),
        "position": np.arange(3),
    }


def test_a_safetensors_file_goes_into_a_module(tmp_path):
    """Names, layouts and dtypes; an int64 becomes an exact count, or int32 where every value fits."""
    pytest.importorskip("safetensors")
    model = Torchlike()
    report = from_torch(safetensors(tmp_path / "a.safetensors", **arrays()), model)
    assert int(model.num_batches_tracked) == 2**40 + 1
    np.testing.assert_array_equal(model.body.layers[2].kernel[...], arrays()["body__2__weight"].T)
    assert model.half[...].tolist() == [1.5, -2.0]
    assert report.converted == (
        "model/num_batches_tracked: int64 -> exact count",
        "model/position: int64 -> int32, all values the same",
    )
    wide = {**arrays(), "position": np.array([1, 2, 2**31])}
    with pytest.raises(tallax.RestoreError, match=r"(?s)model/position.*int64\[3\] in the checkpoint"):
        from_torch(safetensors(tmp_path / "b.safetensors", **wide), model)
    turned = {**arrays(), "body__0__weight": np.zeros((3, 4), np.float32)}
    with pytest.raises(tallax.RestoreError, match=r"(?s)model/body/layers/0/kernel.*float32\[4,3\] in the checkpoint"):
        from_torch(safetensors(tmp_path / "c.safetensors", **turned), model)
    extra = safetensors(tmp_path / "d.safetensors", **arrays(), old__weight=np.ones(2, np.float32))
    with pytest.raises(tallax.RestoreError, match=r"old.weight: in the checkpoint, but not in the objects"):
        from_torch(extra, model)
    model.twin = nnx.Dict(weight=nnx.Param(jnp.zeros(2)))
    from_torch(extra, model, rename={"old": "twin"})
    assert model.twin.weight[...].sum() == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (2**60).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"nope",
        (2).to_bytes(8, "little") + b"[]",
        (59).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36000000]}}'[:59],
        (57).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}} ',
        (57).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4]}}' + b"\x00" * 4,
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4000,4004]}}',
        (11).to_bytes(8, "little") + b'{"a":{"b":1',
        (9999).to_bytes(8, "little") + b"[" * 9999,
        (9 * 2**22).to_bytes(8, "little") + b'{"a":{},"' * 2**22,
    ],
)
def test_a_damaged_safetensors_file_is_an_error(tmp_path, content):
    """Lengths, offsets and shapes are looked at before anything is taken."""
    pytest.importorskip("safetensors")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(tallax.CheckpointError, match=r"cannot be read as a \.safetensors file"):
        from_torch(path, Torchlike())


def test_float8_and_64_bits_of_a_safetensors_file_arrive_bit_by_bit(tmp_path):
    """NumPy has no float8 and JAX cuts 64 bits, and neither is lost."""
    library = pytest.importorskip("safetensors.numpy")
    numbers = {"small": jnp.asarray([1.5, -2.0], jnp.float8_e4m3fn), "wide": np.array([2**40 + 1, 2**63])}
    library.save_file({name: np.asarray(array) for name, array in numbers.items()}, tmp_path / "a.safetensors")
    model = nnx.Dict(small=tallax.Buffer(jnp.zeros(2, jnp.float8_e4m3fn)), wide=tallax.Counter(shape=2))
    from_torch(tmp_path / "a.safetensors", model)
    assert model.small[...].dtype == jnp.float8_e4m3fn
    assert model.small[...].tolist() == [1.5, -2.0]
    assert np.asarray(model.wide).tolist() == [2**40 + 1, 2**63]


def test_a_safetensors_file_without_the_package_is_a_missing_extra(tmp_path, monkeypatch):
    """The error names the extra that installs it."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(tallax.MissingExtraError, match=r"tallax\[torch\]"):
        from_torch(safetensors(tmp_path / "a.safetensors", **arrays()), Torchlike())


def test_several_files_of_tensors_with_an_index(tmp_path):
    """Each array is read from the file that the index names, next to the index."""
    pytest.importorskip("safetensors")
    named = {name.replace("__", "."): name for name in arrays()}
    places = {name: f"model-{k % 2}.safetensors" for k, name in enumerate(named)}
    for file in set(places.values()):
        safetensors(tmp_path / file, **{named[n]: arrays()[named[n]] for n, place in places.items() if place == file})
    index = tmp_path / "model.safetensors.index.json"
    model, other = Torchlike(), Torchlike()
    index.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": places}))
    from_torch(index, model)
    from_torch(safetensors(tmp_path / "one.safetensors", **arrays()), other)
    np.testing.assert_array_equal(model.body.layers[2].kernel[...], other.body.layers[2].kernel[...])
    assert int(model.num_batches_tracked) == 2**40 + 1
    (tmp_path / "sub").mkdir()
    safetensors(tmp_path / "sub" / "model-0.safetensors", half=arrays()["half"])
    less = {name: place for name, place in places.items() if name != "half"}
    for wrong, says in (
        ({"weight_map": places | {"half": "sub/model-0.safetensors"}}, "is not beside the index"),
        ({"weight_map": places | {"half": f"{tmp_path}/sub/model-0.safetensors"}}, "is not beside the index"),
        ({"weight_map": places | {"half": ".."}}, "cannot be read as"),
        ({"weight_map": places | {"half": "gone.safetensors"}}, "gone.safetensors: cannot be read as"),
        ({"weight_map": places | {"more": "model-0.safetensors"}}, "but not in both"),
        ({"weight_map": less}, "but not in both"),
        ({"weight_map": places | {"half": 3}}, "cannot be read as"),
        ({"weight_map": [1]}, "cannot be parsed"),
        ([], "cannot be parsed"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(tallax.CheckpointError, match=says):
            from_torch(index, other)
    index.unlink()
    with pytest.raises(tallax.CheckpointError, match="cannot be parsed"):
        from_torch(index, other)


def test_other_objects_are_not_sources():
    """A source that is neither a module, nor a dict of tensors, nor a file raises."""
    for source, error, says in (
        (3, tallax.InvalidTypeError, "requires a module, a state_dict, or the path of a file"),
        ({"weight": "text"}, tallax.InvalidTypeError, "a state_dict must contain tensors"),
        ({"\x1b[31mred": np.ones(3)}, tallax.InvalidTypeError, r"(?s)requires a module.*\\x1b\[31mred"),
        ("no/such.pt", tallax.CheckpointError, "is not a file"),
        ("no/such.safetensors", tallax.CheckpointError, "cannot be read as"),
    ):
        with pytest.raises(error, match=says):
            from_torch(source, nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(tallax.InvalidTypeError, match="requires an NNX module"):
        from_torch({}, 3)
