# SPDX-License-Identifier: Apache-2.0
"""The presets of `tallax.watch`: their numbers are those that NumPy computes from captured tensors."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax import watching
from tallax.checking._transformations import GRAPH, NO_UPDATES, TREE
from tests.meshes import P, collectives
from tests.quick import cell

standard_promotion = pytest.mark.usefixtures("standard_promotion")
MODES = {mode.name: mode for mode in (GRAPH, NO_UPDATES, TREE)}
WIDTH, HEADS, UNITS, EXPERTS, TOP_K = 8, 2, 16, 4, 2


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, UNITS, rngs=rngs)
        self.down = nnx.Linear(UNITS, WIDTH, rngs=rngs)
        self.gate = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.up.bias[...] = self.up.bias[...].at[3].set(-100.0)  # a dead unit

    def __call__(self, x):
        x = x + self.attention(x, is_causal=True)
        weight = self.gate(x).max(-1, keepdims=True)
        return x + self.down(nnx.relu(self.up(x))) * weight


class Net(nnx.Module):
    def __init__(self, how="loop", blocks=2):
        rngs = nnx.Rngs(0)
        self.how = how
        if how == "scan":
            make = nnx.split_rngs(splits=blocks)(nnx.vmap(Block, in_axes=0, out_axes=0))
            self.blocks = make(rngs)
        else:
            self.blocks = nnx.List([Block(rngs) for _ in range(blocks)])

    def __call__(self, x):
        if self.how == "scan":
            return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)
        for block in self.blocks:
            if self.how == "remat":
                x = nnx.remat(lambda block, x: block(x))(block, x)
            elif self.how == "cond":
                x = nnx.cond(x.shape[0] > 0, lambda block, x: block(x), lambda block, x: x, block, x)
            elif self.how == "vmap":  # of a module that all lanes share
                x = nnx.vmap(lambda block, x: block(x), in_axes=(None, 0), out_axes=0)(block, x)
            else:
                x = block(x)
        return x


def all_presets():
    return [
        watching.dead_units("**/up"),
        watching.massive_activations(Block),
        watching.attention(),
        watching.expert_load("**/gate", top_k=TOP_K),
        watching.update_ratio(),
    ]


def batch(k, rows=8):
    return jax.random.normal(jax.random.key(k), (rows, 6, WIDTH))


def loss_of(model, x):
    with jax.numpy_rank_promotion("allow"):
        return (model(x) ** 2).mean()


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(loss_of)(model, x)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer.update(model, grads)
    return loss


def trained(how="loop", mode="graph", steps=3, *, watched=True, **options):
    """Trains a network; returns it with its watch, its batches and its parameters before and after each step."""
    model = Net(how)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    watch = None
    if watched:
        watch = tallax.watch(model, optimizer, outputs=False, presets=all_presets(), **options)
    seen = [parameters(model)]
    with MODES.get(mode, GRAPH).active():
        run = tallax.compile_step(train_step, model, optimizer) if mode == "compile_step" else nnx.jit(train_step)
        for k in range(steps):
            if mode == "compile_step":
                run(batch(k))
                run.sync()
            else:
                run(model, optimizer, batch(k))
            seen.append(parameters(model))
    return model, watch, seen


def parameters(model):
    return {
        "/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def of_layers(seen):
    """Returns parameters by the names that they have in a loop: those of a stack are taken apart."""
    found = {}
    for name, value in seen.items():
        first, _, rest = name.partition("/")
        if rest.split("/")[0].isdigit():
            found[name] = value
        else:
            found.update({f"{first}/{k}/{rest}": value[k] for k in range(len(value))})
    return found


# --- the same numbers by hand ---------------------------------------------------------------------------------------


def captured(params, x):
    """Returns the tensors of a forward pass by block, computed with NumPy in float64."""
    found, x = [], np.asarray(x, np.float64)
    for k in range(2):
        own = {
            name.removeprefix(f"blocks/{k}/"): np.float64(value) for name, value in params.items() if f"s/{k}/" in name
        }

        def heads(name, x, own=own):
            return np.einsum("btw,whd->bthd", x, own[f"attention/{name}/kernel"]) + own[f"attention/{name}/bias"]

        query, key, value = (heads(name, x) for name in ("query", "key", "value"))
        logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(WIDTH // HEADS)
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
        x = x + np.einsum("bqhd,hdw->bqw", mixed, own["attention/out/kernel"]) + own["attention/out/bias"]
        gate, up = x @ own["gate/kernel"], x @ own["up/kernel"] + own["up/bias"]
        x = x + (np.maximum(up, 0) @ own["down/kernel"] + own["down/bias"]) * gate.max(-1, keepdims=True)
        found.append({"logits": logits, "weights": weights, "gate": gate, "up": up, "out": x})
    return found


def assert_presets(results, steps, k):
    """Asserts that the results of block `k`, a function of the preset, are those of the tensors of all steps."""
    tensors = {name: np.stack([step[k][name] for step in steps]) for name in steps[0][k]}
    fired = (tensors["up"] > 0).reshape(-1, UNITS)
    dead = results("up:dead_units")
    assert dead.dead == (~fired.any(0)).sum() > 0
    assert dead.entries == len(fired)
    np.testing.assert_allclose(dead.rates, fired.mean(0), atol=2 / len(fired))
    np.testing.assert_allclose(dead.share, dead.dead / UNITS)

    massive, out = results(":massive_activations"), tensors["out"]
    np.testing.assert_allclose(massive.largest, np.abs(out).max(), rtol=1e-4)
    np.testing.assert_allclose(massive.rms, np.sqrt((out**2).mean()), rtol=1e-4)
    np.testing.assert_allclose(massive.ratio, massive.largest / massive.rms, rtol=1e-6)
    assert massive.largest_at == 1 + np.abs(out).reshape(len(out), -1).max(1).argmax()
    assert massive.entries == out.size

    heads, logits, weights = results("attention:attention"), tensors["logits"], tensors["weights"]
    np.testing.assert_allclose(heads.largest_logit, logits.max((0, 1, 3, 4)), rtol=1e-4)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1)
    np.testing.assert_allclose(heads.entropy, entropy.mean((0, 1, 3)), rtol=1e-4)
    assert np.array_equal(heads.largest_at, 1 + logits.max((1, 3, 4)).argmax(0))
    assert np.array_equal(heads.queries, [entropy.size // HEADS] * HEADS)

    load, gate = results("gate:expert_load"), tensors["gate"]
    chosen = np.argsort(-gate, -1)[..., :TOP_K]
    tokens = np.bincount(chosen.ravel(), minlength=EXPERTS)
    assert np.abs(np.float64(load.tokens) - tokens).sum() <= 2  # the order of two nearly equal logits may differ
    assert load.tokens.sum() == chosen.size
    np.testing.assert_allclose(load.load, load.tokens / chosen.size)
    np.testing.assert_allclose(load.imbalance, load.load.max() * EXPERTS)
    assert load.idle == (tokens == 0).sum()


def of_block(watch, how, k):
    """Returns a function that returns a result of block `k`, also of a stack."""
    results = watch.result()

    def result(name):
        if how != "scan":
            return results[f"blocks/{k}{'' if name.startswith(':') else '/'}{name}"]
        whole = results[f"blocks{'' if name.startswith(':') else '/'}{name}"]
        return type(whole)(**{field: getattr(whole, field)[k] for field in whole.__dataclass_fields__})

    return result


def assert_as_by_hand(watch, seen, how="loop", steps=None):
    seen = [of_layers(each) for each in seen]
    ran = range(len(seen) - 1) if steps is None else steps
    forward = [captured(seen[k], batch(k)) for k in ran]
    for k in range(2):
        assert_presets(of_block(watch, how, k), forward, k)
    ratios = {name: value for name, value in watch.result().items() if name.endswith(":update_ratio")}
    ratios = of_layers({name.removesuffix(":update_ratio"): value for name, value in ratios.items()})
    assert ratios.keys() == seen[0].keys()
    for name, ratio in ratios.items():
        before = np.float64([seen[k][name] for k in ran])
        update = np.float64([seen[k + 1][name] - seen[k][name] for k in ran])
        np.testing.assert_allclose(ratio, np.sqrt((update**2).mean() / (before**2).mean()), rtol=1e-4, err_msg=name)


WAYS = [
    ("scan", "compile_step"),
    *(cell("loop", mode, quick=False) for mode in MODES),
    *(cell("scan", mode, quick=False) for mode in MODES),
    cell("remat", "graph_updates=False", quick=False),
    *(cell(how, "graph", quick=False) for how in ("remat", "cond", "vmap")),
]


@standard_promotion
@pytest.mark.parametrize(("how", "mode"), WAYS)
def test_presets_are_as_by_hand_and_training_is_bit_equal(how, mode):
    """In every mode and under every transformation, the numbers are right and the parameters those without a watch."""
    _, watch, seen = trained(how, mode)
    _, _, plain = trained(how, mode, watched=False)
    assert watch.unseen == {}
    assert_as_by_hand(watch, seen, how)
    for name, value in seen[-1].items():
        assert value.tobytes() == plain[-1][name].tobytes(), name


@standard_promotion
@pytest.mark.parametrize("mode", ["tree", *(cell(mode, quick=False) for mode in MODES)])
def test_presets_in_plain_calls(mode):
    """Outside of `value_and_grad`, each call of a module is an update, in every mode."""
    model = Net()
    params = of_layers(parameters(model))
    presets = [preset for preset in all_presets() if preset.name != "update_ratio"]
    watch = tallax.watch(model, outputs=False, presets=presets)
    with MODES[mode].active(), jax.numpy_rank_promotion("allow"):
        run = nnx.jit(lambda model, x: model(x))
        for k in range(2):
            run(model, batch(k))
    steps = [captured(params, batch(k)) for k in range(2)]
    for k in range(2):
        assert_presets(of_block(watch, "loop", k), steps, k)
    model.eval()
    run(model, batch(2))
    assert watch.result()["blocks/0:massive_activations"].entries == 2 * batch(0).size


@standard_promotion
@pytest.mark.parametrize("options", [{"every": 2}, cell({"window": 2}, quick=False)], ids=str)
def test_every_and_window(options):
    """Presets look at every n-th step, and start again after a window, as summaries do."""
    _, watch, seen = trained(steps=3, **options)
    seen = [of_layers(each) for each in seen]
    chosen = [0, 2] if "every" in options else [2]
    entries = watch.result()["blocks/0/up:dead_units"].entries
    assert entries == len(chosen) * batch(0)[..., 0].size
    assert watch.result()["blocks/1:massive_activations"].largest_at in [k + 1 for k in chosen]
    name = "blocks/0/up/kernel"
    before = np.float64([seen[k][name] for k in chosen])
    update = np.float64([seen[k + 1][name] - seen[k][name] for k in chosen])
    expected = np.sqrt((update**2).mean() / (before**2).mean())
    np.testing.assert_allclose(watch.result()[f"{name}:update_ratio"], expected, rtol=1e-4)


@standard_promotion
def test_expert_load_of_indices_and_empty_results():
    """A router may return the numbers of the experts. Nothing seen means zeros, and a line in `unseen`."""

    class Router(nnx.Module):
        def __call__(self, x):
            return x.sum(-1), jnp.stack([x.argmax(-1), x.argmin(-1)], -1)

    model = Router()
    watch = tallax.watch(model, outputs=False, presets=watching.expert_load("", experts=5))
    result = watch.result()[":expert_load"]
    assert (result.tokens.tolist(), result.imbalance, result.idle) == ([0] * 5, 0.0, 0)
    assert watch.unseen == {
        ":expert_load": "it was not called, or as Class.method(module, ...), which a watch does not see"
    }
    x = jnp.array([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    model(x)
    result = watch.result()[":expert_load"]
    assert (result.tokens.tolist(), result.imbalance, result.idle) == ([2, 1, 1, 0, 0], 2.5, 2)


class Router(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.eye(3))

    def __call__(self, x):
        return x  # the logits as they are


@pytest.mark.parametrize(
    "logits",
    [[5.0, -np.inf, -np.inf], [-np.inf] * 3, [np.nan, 1.0, 2.0], [1.0, 1.0, 1.0], [-3e38, -np.inf, 0.0]],
)
def test_each_token_goes_to_different_experts(logits):
    """Also if experts are masked with -inf, or logits are equal or NaN, the experts are those of `lax.top_k`."""
    model = nnx.Dict(router=Router())
    seen = tallax.watch(model, outputs=False, presets=tallax.watching.expert_load("router", top_k=2))
    x = jnp.array([logits], jnp.float32)
    model.router(x)
    expected = np.bincount(np.asarray(jax.lax.top_k(x, 2)[1]).ravel(), minlength=3)
    assert seen.result()["router:expert_load"].tokens.tolist() == expected.tolist()


def attended(function, *args, heads=4, **kwargs):
    """Returns the result of a module that passes its arguments to an attention function."""

    class Own(nnx.Module):
        def __init__(self):
            self.attend = function

        def __call__(self, *args, **kwargs):
            return self.attend(*args, **kwargs)

    model = Own()
    watch = tallax.watch(model, outputs=False, presets=watching.attention("", function="attend", heads=heads))
    with jax.numpy_rank_promotion("allow"):  # compiled, as op by op it would be a hundred programs
        nnx.jit(lambda model, args: model(*args, **kwargs))(model, args)
    assert watch.unseen == {}
    return watch.result()[":attention"]


@standard_promotion
def test_attention_with_masks_biases_scales_and_shared_keys():
    """The logits are those after scale, bias and mask, also if heads share keys or a query may attend to nothing."""
    query, key = (jax.random.normal(jax.random.key(k), (3, 5, heads, 6)) for k, heads in enumerate((4, 2)))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (3, 1, 5, 5)).at[0, 0, 2].set(False)
    bias = jax.random.normal(jax.random.key(3), (4, 5, 5))
    result = attended(jax.nn.dot_product_attention, query, key, key, bias[None], mask, scale=0.7, is_causal=True)
    logits = 0.7 * np.einsum("bqhd,bkhd->bhqk", query, np.repeat(np.asarray(key), 2, -2)) + np.asarray(bias)
    allowed = np.broadcast_to(np.asarray(mask) & np.tril(np.ones((5, 5), bool)), logits.shape)
    seen = allowed.any(-1)
    logits = np.where(allowed, logits, -np.inf)
    weights = np.where(allowed, np.exp(logits), 0.0)
    weights = weights / np.where(seen, weights.sum(-1), 1.0)[..., None]
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(-1)
    assert np.array_equal(result.queries, seen.sum((0, 2)))
    assert result.queries[0] < 15
    np.testing.assert_allclose(result.largest_logit, logits.max((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(result.entropy, entropy.sum((0, 2)) / seen.sum((0, 2)), rtol=1e-4)


@standard_promotion
def test_logits_that_are_all_negative():
    """The largest logit may be negative, and its step is right."""
    query, key = jnp.ones((2, 3, 1, 4)), -jnp.ones((2, 3, 1, 4))
    result = attended(nnx.dot_product_attention, query, key, key, heads=1)
    assert (result.largest_logit.tolist(), result.largest_at.tolist()) == ([-2.0], [1])


@pytest.mark.parametrize(
    "spec",
    [pytest.param(P(), id="data-parallel"), cell(P("data"), id="fully sharded", quick=False)],
)
def test_no_collective_is_added_and_the_numbers_are_those_of_one_device(spec):
    """On eight devices the step has no collective more, the same parameters, and the same numbers."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def prepared(**options):
        model = Net(blocks=1)
        for _, node in nnx.iter_graph(model):
            if isinstance(node, nnx.Param):
                fits = node.shape[0] % 8 == 0
                node.set_raw_value(jax.device_put(node.get_raw_value(), jax.NamedSharding(mesh, spec if fits else P())))
        optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
        watch = tallax.watch(model, optimizer, outputs=False, presets=all_presets(), **options) if options else None
        return model, optimizer, watch

    x = jax.device_put(batch(0), jax.NamedSharding(mesh, P("data")))
    model, optimizer, _ = prepared()
    plain = collectives(nnx.jit(train_step), model, optimizer, x)
    assert sum(plain.values()) > 0
    for every in (1, 2):
        model, optimizer, watch = prepared(every=every)
        assert collectives(nnx.jit(train_step), model, optimizer, x) == plain
    single = Net(blocks=1)
    single_optimizer = nnx.Optimizer(single, optax.sgd(1e-2), wrt=nnx.Param)
    expected = tallax.watch(single, single_optimizer, outputs=False, presets=all_presets())
    jax.block_until_ready(nnx.jit(train_step)(model, optimizer, x))
    nnx.jit(train_step)(single, single_optimizer, batch(0))
    assert watch.unseen == {}
    for name, result in expected.result().items():
        other = watch.result()[name]
        for left, right in zip(jax.tree.leaves(result), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, err_msg=name)


@standard_promotion
def test_inside_shard_map():
    """Inside `shard_map` the numbers of all replicas are combined."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model, plain = (nnx.Linear(WIDTH, 4, rngs=nnx.Rngs(0)) for _ in range(2))
    presets = [watching.dead_units(""), watching.massive_activations("")]
    watches = [tallax.watch(each, outputs=False, presets=presets) for each in (model, plain)]
    graphdef, state = nnx.split(model)

    def step(state, x):
        model = nnx.merge(graphdef, state)
        with jax.numpy_rank_promotion("allow"):
            model(x)
        return nnx.state(model)

    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    nnx.update(model, jax.block_until_ready(run(state, batch(0))))
    with jax.numpy_rank_promotion("allow"):
        nnx.jit(lambda model, x: model(x))(plain, batch(0))
    for name, result in watches[1].result().items():
        for left, right in zip(*map(jax.tree.leaves, (result, watches[0].result()[name])), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5)


@standard_promotion
def test_merge_and_reset():
    """Statistics of presets merge like all statistics: the numbers of both, and the earlier of two equal extremes."""

    def watched(*numbers):
        model = nnx.Linear(1, 1, use_bias=False, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        tallax.watch(model, outputs=False, presets=watching.massive_activations(""))
        for x in numbers:
            model(jnp.array([x]))
        return vars(model)[":"].massive_activations

    left, right = watched(1.0, 3.0), watched(2.0, -5.0, 4.0)
    left.merge(right)
    result = left.compute()
    assert (result.largest, result.largest_at, result.entries) == (5.0, 2, 5)
    np.testing.assert_allclose(result.rms, np.sqrt(11.0))
    left.reset()
    assert left.compute().entries == 0


@standard_promotion
def test_remove_and_copies():
    """A removed watch leaves an equal model; copies and pickles are watched, also the attention function."""
    model = Net(blocks=1)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, outputs=False, presets=all_presets())
    run = nnx.jit(lambda model, x: model(x))
    for copied in (nnx.clone(model), pickle.loads(pickle.dumps(model))):
        with jax.numpy_rank_promotion("allow"):
            run(copied, batch(0))
        own = tallax.Watch(copied)
        assert own.result()["blocks/0/attention:attention"].queries.tolist() == [48, 48]
        own.remove()
        assert nnx.graphdef(copied) == nnx.graphdef(Net(blocks=1))
    assert watch.result()["blocks/0/attention:attention"].queries.tolist() == [0, 0]
    watch.remove()
    assert type(optimizer) is nnx.Optimizer
    assert nnx.graphdef(model) == nnx.graphdef(Net(blocks=1))
    assert model.blocks[0].attention.attention_fn is nnx.dot_product_attention


@standard_promotion
def test_names_in_logs_and_the_table():
    """`Logger` writes the numbers of presets under the path and the preset, and the table has a line for each."""
    records = []

    class Sink(tallax.sinks.Sink):
        def write(self, record):
            records.append(record)

    model, watch, _ = trained(steps=1)
    with tallax.Logger(Sink()) as log:
        log(model, step=1)
    scalars, results = records[0].scalars, watch.result()
    assert scalars["blocks/0/up:dead_units/dead"] == results["blocks/0/up:dead_units"].dead == 1
    assert scalars["blocks/1/gate/kernel:update_ratio"] == results["blocks/1/gate/kernel:update_ratio"]
    assert scalars["blocks/1/attention:attention/entropy/1"] == results["blocks/1/attention:attention"].entropy[1]
    assert scalars["blocks/0/gate:expert_load/imbalance"] == results["blocks/0/gate:expert_load"].imbalance
    lines = str(watch).splitlines()
    assert lines[0] == f"watching {len(watch.sites)} tensors, by presets and other statistics"
    assert any(line.startswith("blocks/0/up:dead_units ") and "dead 1, share 0.0625" in line for line in lines)


@standard_promotion
def test_unseen_has_the_reasons():
    """A module that a preset cannot see is named, with the reason and the remedy."""

    class Direct(nnx.Module):
        def __init__(self):
            self.num_heads = 2

        def __call__(self, x):
            return nnx.dot_product_attention(x, x, x)

    class Wrong(nnx.Module):
        def __init__(self):
            self.attention_fn, self.num_heads = lambda x: x, 2

        def __call__(self, x):
            return self.attention_fn(x)

    class Model(nnx.Module):
        def __init__(self):
            self.direct, self.wrong, self.linear = Direct(), Wrong(), nnx.Linear(2, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.linear(x[..., 0, :])
            return self.wrong(self.direct(x))

    model = Model()
    presets = [
        watching.attention(),
        watching.attention("linear"),
        watching.dead_units(["linear", ""], units=7),
        watching.expert_load("direct"),
    ]
    watch = tallax.watch(model, outputs=False, presets=presets)
    with jax.numpy_rank_promotion("allow"):
        model(jnp.ones((1, 3, 2, 2)))
    assert watch.unseen == {
        "direct:attention": "it calls dot_product_attention itself; set self.attention_fn = nnx.dot_product_attention "
        "in __init__, and call self.attention_fn(query, key, value)",
        "wrong:attention": "its attention function was not called like nnx.dot_product_attention, "
        "with (query, key, value, ...)",
        "linear:attention": "it has no function in the attribute attention_fn",
        "linear:dead_units": "its output has the shape (1, 3, 3), whose last axis is not that of 7 units",
        ":dead_units": "its output has the shape (1, 3, 2, 2), whose last axis is not that of 7 units",
        "direct:expert_load": "the number of its experts is unknown, as its own Params do not share a last axis; "
        "pass experts=",
    }


# --- coordinate_check -----------------------------------------------------------------------------------------------


class Mlp(nnx.Module):
    def __init__(self, width, std):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs)

    def __call__(self, x):
        return self.hidden(nnx.relu(self.first(x)))


@standard_promotion
def test_coordinate_check():
    """The exponents are the known ones, at the start and after steps of Adam with one learning rate for all widths."""

    @nnx.jit
    def train_step(model, optimizer, x):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            grads = nnx.grad(lambda model: (model(x) ** 2).mean())(model)
            optimizer.update(model, grads)

    def factory(width, scale=1.0):
        model = Mlp(width, scale * width**-0.5)
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    x, widths = jax.random.normal(jax.random.key(1), (16, 4)), [256, 64, 1024]
    with jax.numpy_rank_promotion("allow"):
        result = watching.coordinate_check(factory, widths, x, train_step=train_step, steps=2)
        wide = watching.coordinate_check(lambda width: Mlp(width, 1.0), widths, x, sites=nnx.Linear)
    assert result.widths == (64, 256, 1024)
    model, optimizer = factory(256)
    with jax.numpy_rank_promotion("allow"):
        for step in range(3):
            expected = float(jnp.sqrt((model(x) ** 2).mean()))
            np.testing.assert_allclose(result.rms["hidden"][step, 1], expected, rtol=1e-5)
            train_step(model, optimizer, x)
    np.testing.assert_allclose(result.exponents["hidden"][0], 0.0, atol=0.1)
    assert result.exponents["hidden"][2] > 0.3  # Adam's updates of the hidden kernel do not shrink with the width
    np.testing.assert_allclose(wide.exponents["hidden"], [0.5], atol=0.1)
    expected = np.polyfit(np.log(wide.widths), np.log(wide.rms["hidden"][0]), 1)[0]
    np.testing.assert_allclose(wide.exponents["hidden"], expected)
    lines = str(wide).splitlines()
    assert lines[0] == "RMS of outputs at the start"
    assert lines[1].startswith("site ")
    assert lines[2].startswith("hidden ")
    assert set(wide.rms) == {"first", "hidden"}
