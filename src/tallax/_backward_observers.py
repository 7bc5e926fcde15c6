# SPDX-License-Identifier: Apache-2.0
"""`BackwardObserver`: a part of a module that `value_and_grad` lets see the backward pass.

An observer hands out a *token*: an array of float32 zeros. `value_and_grad` differentiates the loss with respect to the
tokens as well as the parameters, and gives each observer the cotangent of its token. The value of a token is never
used, so the loss does not depend on it; the backward rule of the observer decides what its cotangent is.
`tallax.watching` uses this to see the gradients of activations. This file is below both packages, so that
`differentiation` need not know `watching`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax import nnx

from tallax._module import EvalAware


class BackwardObserver(EvalAware, abc.ABC):
    """A part of a module with a token, whose cotangent it reads after each backward pass."""

    @abc.abstractmethod
    def token(self) -> jax.Array | None:
        """Returns the token, float32 zeros; None if there is nothing to observe."""

    @classmethod
    @abc.abstractmethod
    def attach(cls, observers: Sequence[Any], tokens: Sequence[jax.Array]) -> None:
        """Prepares some observers for a forward pass, to which it makes their tokens available."""

    @abc.abstractmethod
    def detach(self) -> Any:
        """Undoes `attach`, so that the module has its structure again; returns arrays that `absorb` gets."""

    @classmethod
    @abc.abstractmethod
    def absorb(cls, observers: Sequence[Any], cotangents: Sequence[jax.Array], seen: Sequence[Any]) -> None:
        """Updates the state of observers, after the state of the forward pass was written back.

        All of a model come together, so that they can be updated by few operations: to compile those takes longer than
        to run them.

        Args:
            observers: The observers.
            cotangents: The cotangent of the token of each.
            seen: The result of `detach` of each.
        """


def observers_of(nodes: Iterable[Any]) -> list[BackwardObserver]:
    """Returns the observers in some modules, each once, in the order of Flax's graph."""
    if not BackwardObserver.__subclasses__():  # `tallax.watching` was never imported: the walk below takes a while
        return []
    found: dict[int, BackwardObserver] = {}
    for node in nodes:
        for _, part in nnx.iter_graph(node, graph=True):  # models may share Variables, in tree mode too
            if isinstance(part, BackwardObserver):
                found[id(part)] = part
    return list(found.values())
