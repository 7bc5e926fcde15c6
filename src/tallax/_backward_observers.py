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
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from tallax._module import EvalAware


class BackwardObserver(EvalAware, abc.ABC):
    """A part of a module with a token, whose cotangent it reads after each backward pass."""

    @abc.abstractmethod
    def token(self) -> jax.Array | None:
        """Returns the token, float32 zeros; None if there is nothing to observe."""

    @abc.abstractmethod
    def attach(self, token: jax.Array) -> None:
        """Makes the token available to the forward pass."""

    @abc.abstractmethod
    def detach(self) -> None:
        """Removes the token, so that the observer has the structure that it had before `attach`."""

    @abc.abstractmethod
    def absorb(self, cotangent: jax.Array) -> None:
        """Updates the state with the cotangent of the token, after the state of the forward pass was written back."""


def observers_of(nodes: Iterable[Any]) -> list[BackwardObserver]:
    """Returns the observers in some modules, each once, in the order of Flax's graph."""
    if not BackwardObserver.__subclasses__():  # `tallax.watching` was never imported: the walk below takes a while
        return []
    found: dict[int, BackwardObserver] = {}
    for node in nodes:
        for _, part in nnx.iter_graph(node):
            if isinstance(part, BackwardObserver):
                found[id(part)] = part
    return list(found.values())
