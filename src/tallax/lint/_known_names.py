# SPDX-License-Identifier: Apache-2.0
"""The names of Flax, JAX and NumPy that the rules know, each in one spelling."""

from __future__ import annotations

import functools

# The libraries whose names the rules know. Their files are never read, so that a finding is the same if
# a checkout of Flax or a vendored optax is in the project's folders.
LIBRARIES = {"nnx", "jnp", "np", "jax", "flax", "optax", "chex"}

# Flax's Variable types, and the type each derives from.
VARIABLES = {
    "nnx.Variable": "",
    "nnx.Param": "nnx.Variable",
    "nnx.LoRAParam": "nnx.Param",
    "nnx.BatchStat": "nnx.Variable",
    "nnx.Cache": "nnx.Variable",
    "nnx.Intermediate": "nnx.Variable",
    "nnx.Perturbation": "nnx.Intermediate",
    "nnx.RngState": "nnx.Variable",
    "nnx.RngCount": "nnx.RngState",
    "nnx.RngKey": "nnx.RngState",
    "nnx.OptState": "nnx.Variable",
    "nnx.OptArray": "nnx.OptState",
    "nnx.OptVariable": "nnx.OptState",
    "nnx.MetricState": "nnx.Variable",
    "nnx.SpectralNormState": "nnx.Variable",
}

# Classes of nnx that are nodes of the graph, but not modules of a model.
NODES = {"nnx.Pytree", "nnx.Object", "nnx.List", "nnx.Dict", "nnx.Rngs", "nnx.RngStream"}
NOT_NODES = {
    "nnx.State",
    "nnx.GraphDef",
    "nnx.GraphState",
    "nnx.PathContains",
    "nnx.OfType",
    "nnx.StateAxes",
    "nnx.Carry",
}

# The Variables of Flax's own layers, by attribute.
LAYER_VARIABLES = {
    "kernel": "nnx.Param",
    "bias": "nnx.Param",
    "scale": "nnx.Param",
    "embedding": "nnx.Param",
    "mean": "nnx.BatchStat",
    "var": "nnx.BatchStat",
    "lora_a": "nnx.LoRAParam",
    "lora_b": "nnx.LoRAParam",
    "step": "nnx.OptState",
    "cached_key": "nnx.Cache",
    "cached_value": "nnx.Cache",
    "cache_index": "nnx.Cache",
}
LAYERS: dict[str, set[str]] = {
    "nnx.Linear": {"kernel", "bias"},
    "nnx.LinearGeneral": {"kernel", "bias"},
    "nnx.Conv": {"kernel", "bias"},
    "nnx.ConvTranspose": {"kernel", "bias"},
    "nnx.Einsum": {"kernel", "bias"},
    "nnx.BatchNorm": {"mean", "var", "scale", "bias"},
    "nnx.LayerNorm": {"scale", "bias"},
    "nnx.RMSNorm": {"scale"},
    "nnx.GroupNorm": {"scale", "bias"},
    "nnx.Embed": {"embedding"},
    "nnx.LoRA": {"lora_a", "lora_b"},
    "nnx.Optimizer": {"step"},
    "nnx.ModelAndOptimizer": {"step"},
    "nnx.MultiHeadAttention": {"cached_key", "cached_value", "cache_index"},
}

# The Variables that exist for all options of the layer, and the dtypes that are always the same.
ALWAYS_ARRAYS = {"kernel": "", "embedding": "", "mean": "", "var": "", "step": "uint32"}

# The methods of Flax's classes that change their state: running statistics, random number streams, caches, metrics.
_METRIC = {"update", "reset"}
CHANGING_LAYERS = {
    "nnx.BatchNorm": {"__call__"},
    "nnx.Dropout": {"__call__"},
    "nnx.Rngs": {"__call__"},
    "nnx.RngStream": {"__call__"},
    "nnx.SpectralNorm": {"__call__"},
    "nnx.Optimizer": {"update"},
    "nnx.ModelAndOptimizer": {"update"},
    "nnx.EMA": {"update"},
    "nnx.Metric": _METRIC,
    "nnx.MultiMetric": _METRIC,
    "nnx.Average": _METRIC,
    "nnx.Accuracy": _METRIC,
    "nnx.Welford": _METRIC,
}

# Dataclasses that are pytrees.
STRUCT_DECORATORS = {"flax.struct.dataclass", "struct.dataclass", "chex.dataclass"}
STRUCT_BASES = {"flax.struct.PyTreeNode", "struct.PyTreeNode"}

# Functions that run a function under a trace. Those of JAX do not return changes of modules.
RAW_TRANSFORMS = {
    "jax.jit",
    "jax.pmap",
    "jax.vmap",
    "jax.checkpoint",
    "jax.remat",
    "jax.ad_checkpoint.checkpoint",
    "jax.grad",
    "jax.value_and_grad",
    "jax.shard_map",
    "jax.lax.scan",
    "jax.lax.cond",
    "jax.lax.switch",
    "jax.lax.while_loop",
    "jax.lax.fori_loop",
    "jax.lax.map",
    "jax.experimental.shard_map.shard_map",
    "jax.linearize",
    "jax.vjp",
    "jax.jvp",
}
NNX_TRANSFORMS = {
    "nnx.jit",
    "nnx.pmap",
    "nnx.vmap",
    "nnx.remat",
    "nnx.checkpoint",
    "nnx.grad",
    "nnx.value_and_grad",
    "nnx.shard_map",
    "nnx.scan",
    "nnx.cond",
    "nnx.switch",
    "nnx.while_loop",
    "nnx.fori_loop",
    "nnx.jit_partial",
    "nnx.custom_vjp",
    "nnx.eval_shape",
    "nnx.jvp",
    "nnx.vjp",
}
JITS = {"jax.jit", "jax.pmap", "nnx.jit", "nnx.pmap", "nnx.jit_partial", "tallax.compile_step"}
TRANSFORMS = RAW_TRANSFORMS | NNX_TRANSFORMS | JITS

_PREFIXES = (
    ("flax.nnx.", "nnx."),
    ("flax.experimental.nnx.", "nnx."),
    ("nnx.", "nnx."),  # `nnx.metrics.Average`
    ("jax.numpy.", "jnp."),
    ("numpy.", "np."),
    ("jax._src.", "jax."),
)
_MODULES = {"flax.nnx": "nnx", "flax.experimental.nnx": "nnx", "jax.numpy": "jnp", "numpy": "np"}


@functools.lru_cache(maxsize=4096)
def canonical(dotted: str) -> str:
    """Returns the canonical spelling of a name from Flax, JAX or NumPy, and any other name unchanged.

    `flax.nnx.variablelib.Param` and `flax.experimental.nnx.Param` are both `nnx.Param`: Flax moves objects between
    modules, but keeps their names.
    """
    if dotted in _MODULES:
        return _MODULES[dotted]
    for prefix, short in _PREFIXES:
        if dotted.startswith(prefix):
            rest = dotted[len(prefix) :]
            if short == "nnx.":
                last = rest.rpartition(".")[2]
                # A submodule, as in `from flax.nnx import variablelib`, has a small first letter.
                return short + (last if last[:1].isupper() or rest.count(".") == 0 or last in _FUNCTIONS else rest)
            return short + rest
    return dotted


_FUNCTIONS = {name.partition(".")[2] for name in NNX_TRANSFORMS} | {
    "split",
    "merge",
    "state",
    "update",
    "pop",
    "clone",
    "data",
    "static",
}


def derives(name: str, ancestor: str) -> bool:
    """Returns whether one of Flax's Variable types is another or derives from it."""
    while name:
        if name == ancestor:
            return True
        name = VARIABLES.get(name, "")
    return False
