# SPDX-License-Identifier: Apache-2.0
"""Variables in the lists and dicts of a `tallax.Module` are kept, at any depth."""

import copy
import pickle

import jax.numpy as jnp
import pytest
from flax import nnx

import tallax
from tests.cases import MODES, STATE_CASES


class Block(nnx.Module):
    """A plain module that keeps counters in a list."""

    def __init__(self):
        self.counts = nnx.List([tallax.Counter(), tallax.Counter()])

    def __call__(self, x):
        for k in range(len(self.counts)):
            self.counts[k] += 1
        return x


class Net(tallax.Module):
    """Holds counters in every kind of container."""

    def __init__(self):
        self.loads = nnx.List([tallax.Counter(), tallax.Counter(1), tallax.Buffer(0.0), "label"])
        self.named = nnx.Dict(seen=tallax.Counter(), mean=tallax.Buffer(0.0), scale=2.0)
        self.deep = nnx.List([nnx.Dict(inner=nnx.List([tallax.Counter()]))])
        self.blocks = nnx.Sequential(Block(), Block())
        self.block = Block()
        self.given = nnx.data(nnx.Dict(a=tallax.Counter()))
        self.rates = nnx.List([tallax.statistics.Rate(), tallax.StepCounter(nnx.Rngs(0))])

    def __call__(self, x):
        self.loads[1] += 2
        self.named["seen"] += 1
        self.deep[0].inner[0] += 1
        return self.block(self.blocks(x))


PLACES = {
    "list": lambda m: (m.loads, 0),
    "list, from the end": lambda m: (m.loads, -2),
    "dict": lambda m: (m.named, "seen"),
    "list in dict in list": lambda m: (m.deep[0].inner, 0),
    "dict of dict": lambda m: (m.deep[0], "inner"),
    "sequential": lambda m: (m.blocks.layers[1].counts, 1),
    "plain module": lambda m: (m.block.counts, 0),
    "nnx.data": lambda m: (m.given, "a"),
    "a statistic": lambda m: (m.rates, 0),
    "a step counter": lambda m: (m.rates, 1),
}
MADE = {
    "made": Net,
    "cloned": lambda: nnx.clone(Net()),
    "copied": lambda: copy.deepcopy(Net()),
    "pickled": lambda: pickle.loads(pickle.dumps(Net())),
    "merged": lambda: nnx.merge(*nnx.split(Net())),
    "by nnx.jit": nnx.jit(Net),
}


def _counts(model):
    return [int(v) for _, v in nnx.iter_graph(model) if isinstance(v, tallax.Counter) and not v.shape]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_entry_is_kept(place, make):
    """An array in the place of a Variable or a statistic raises, names it, and changes nothing, in every copy."""
    model = make()
    holder, key = place(model)
    before, counts = holder[key], _counts(model)
    new = [jnp.int32(1)] if isinstance(before, nnx.List) else jnp.int32(1)
    with pytest.raises(tallax.ReplacedVariableError, match=r"this entry is a \w+, which an assignment would drop") as e:
        holder[key] = new
    assert "unnamed" not in str(e.value)
    assert holder[key] is before
    assert _counts(model) == counts


WAYS = {
    "[...] =": lambda m: m.loads.__setitem__(0, m.loads[0] + 1),
    "slice": lambda m: m.loads.__setitem__(slice(0, 2), [tallax.Counter(5), 1]),
    "slice of arrays": lambda m: m.loads.__setitem__(slice(None), [count + 1 for count in m.loads[:2]] + [1, 2]),
    "setattr of a list": lambda m: setattr(m.loads, "1", 3),
    "attribute of a dict": lambda m: setattr(m.named, "seen", m.named.seen + 1),
    "[...] = of a dict": lambda m: m.named.__setitem__("mean", m.named["mean"] * 0.5),
    "update": lambda m: m.named.update(scale=3.0, seen=m.named.seen + 1),
    "update by a dict": lambda m: m.named.update({"scale": 3.0, "seen": 1}),
    "a new list": lambda m: setattr(m, "loads", nnx.List([count + 1 for count in m.loads[:2]])),
    "a plain list": lambda m: setattr(m, "loads", [1, 2]),
    "a new dict": lambda m: setattr(m, "named", nnx.Dict(seen=m.named.seen + 1)),
    "a nested list": lambda m: setattr(m, "deep", nnx.List([nnx.Dict(inner=nnx.List([1]))])),
    "None": lambda m: m.loads.__setitem__(0, None),
    "in a compiled step": nnx.jit(lambda m: m.loads.__setitem__(0, m.loads[0] + 1)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_replace_an_entry_raises(way):
    """Every way to replace an entry raises, and nothing is written before the error."""
    model = Net()
    before = [*model.loads], dict(model.named)
    with pytest.raises(tallax.ReplacedVariableError):
        way(model)
    assert all(a is b for a, b in zip(model.loads, before[0], strict=True))
    assert all(model.named[key] is value for key, value in before[1].items())


def test_intended_replacements_stay_possible():
    """A Variable for a Variable, deletion, and all that moves entries, as in a plain list and dict."""
    model, counter, array = Net(), tallax.Counter(7), jnp.ones(2)
    del model.loads
    model.loads = nnx.List([tallax.Counter(0), tallax.Counter(1), array])
    loads, seen = model.loads, model.named["seen"]
    first, second, _ = loads
    loads[0] = counter
    loads.insert(0, array)
    assert all(a is b for a, b in zip(loads, [array, counter, second, array], strict=True))
    loads.reverse()
    assert loads[2] is counter
    loads.reverse()
    assert loads.pop(0) is array
    del loads[0]
    assert loads[0] is second
    loads.append(first)
    loads.extend([array, tallax.Counter(2)])
    loads += [array]
    assert loads is model.loads
    assert len(loads) == 6
    loads[1:2] = [jnp.ones(3)]
    del model.named["seen"]
    model.named["seen"] = 1.0
    assert model.named.setdefault("other", seen) is seen
    model.named.update(other=counter, scale=3.0)
    assert model.named.pop("other") is counter
    model.loads = nnx.List([])
    model.named = nnx.Dict(mean=tallax.Buffer(1.0))
    model.rates[0] = tallax.statistics.Rate()
    model.block = Block()


def test_entries_added_later_are_kept_too():
    """Containers that are put into a container, or opened from nnx.data, are guarded as the first ones are."""
    model = Net()
    model.loads.append(nnx.Dict(a=tallax.Counter()))
    model.named["more"] = nnx.List([tallax.Counter()])
    for holder, key in ((model.loads[-1], "a"), (model.named["more"], 0)):
        with pytest.raises(tallax.ReplacedVariableError):
            holder[key] = holder[key] + 1


def test_containers_stay_those_of_flax():
    """They are the objects that were assigned, of Flax's types, with the same paths, and print alike."""
    mine, named = nnx.List([tallax.Counter()]), nnx.Dict(a=tallax.Counter())
    model, plain = tallax.Module(), nnx.Module()
    model.mine, model.named = mine, named
    plain.mine, plain.named = nnx.List([tallax.Counter()]), nnx.Dict(a=tallax.Counter())
    assert model.mine is mine
    assert isinstance(mine, nnx.List)
    assert isinstance(named, nnx.Dict)
    assert list(nnx.to_flat_state(nnx.state(model))) == list(nnx.to_flat_state(nnx.state(plain)))
    assert repr(model).partition("\n")[2] == repr(plain).partition("\n")[2]
    assert list(named) == ["a"]


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
def test_counted_in_every_mode(compiled):
    """Entries are counted once a call, however the model is compiled."""
    model = Net()
    step = compiled(lambda model, x: model(x).sum())
    for _ in range(3):
        step(model, jnp.ones(2))
    assert [int(model.loads[1]), int(model.named.seen), int(model.deep[0].inner[0])] == [7, 3, 3]
    assert [int(count) for count in model.blocks.layers[1].counts] == [3, 3]
    with pytest.raises(tallax.ReplacedVariableError):
        model.loads[0] = model.loads[0] + 1


def test_counted_in_a_compiled_step():
    """Entries count in a compiled step as under nnx.jit."""
    model = Net()
    with tallax.compile_step(lambda model, x: model(x).sum(), model) as step:
        for _ in range(3):
            step(jnp.ones(2))
    assert [int(model.loads[1]), int(model.named.seen)] == [7, 3]


@pytest.mark.parametrize("name", STATE_CASES)
def test_every_type_is_kept(name):
    """In a list and in a dict; as in an attribute."""
    model = tallax.Module()
    model.items, model.named = nnx.List([STATE_CASES[name].make()]), nnx.Dict(item=STATE_CASES[name].make())
    for holder, key in ((model.items, 0), (model.named, "item")):
        with pytest.raises(tallax.ReplacedVariableError):
            holder[key] = jnp.ones(3)
