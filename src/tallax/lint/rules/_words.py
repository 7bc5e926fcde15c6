# SPDX-License-Identifier: Apache-2.0
"""Evidence in comments and names that a parameter is state, or that it is learned."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from tallax.lint._bindings import initial, reaching
from tallax.lint._check import Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Array, Frame, Number

_UNTRAINED = re.compile(
    r"\b(?:non-?\s?(?:trainable|learnable|trained|learned)|un(?:trained|trainable)|frozen|buffers?|"
    # Many things are fixed: a size, a bug. The word counts before a kind of values, and at the end of a clause.
    r"fixed(?=\s*(?:$|[,.;)(/#]|(?:and |but |or )?(?:not|non)\b|(?:[\w-]+\s+){0,2}(?:random|sin\w*|positions?|"
    r"positional|weights?|values?|tables?|embed\w*|buffers?|freq\w*|basis|matri\w*|param\w*|constants?|kernels?|filters?|"
    r"projections?|codebooks?)\b))|"
    r"(?:not|never|isn't|n't)(?: be)? (?:a )?"
    r"(?:train\w*|learn\w*|optimi[sz]ed|updated by (?:the )?(?:optimi[sz]er|gradient))|"
    r"only train it if|no gradients?|without gradients?)\b",
    re.IGNORECASE,
)
_TRAINED = re.compile(
    r"(?<!non-)(?<!non )(?<!not )(?<!not a )(?<!not be )(?<!n't )(?<!never )(?<!n't be )"
    r"\b(?:learn(?:ed|able|t)|trainable|trained)\b",
    re.IGNORECASE,
)
# A comment that speaks of another attribute than the one it stands beside.
_ELSEWHERE = re.compile(r"\b(?:above|below|others?|previous|following|next|unlike|rest)\b", re.IGNORECASE)
_RUNNING = re.compile(
    r"^_?(?:(?:running|moving)_(?:mean|var|variance|std|avg|average|sum|min|max|count)|num_batches_tracked)$"
)
_COUNTER = re.compile(
    r"^_?(?:count|counter|step|steps|step_count|global_step|num_steps|n_steps|num_updates|num_calls|n_calls|iteration|"
    r"iterations|epoch|call_count|update_count|\w+_(?:count|counter))$"
)
# Names under which PyTorch models register buffers, which a converted checkpoint fills: names that are always buffers,
# and names that must also start as zeros or ones.
_BUFFER = re.compile(
    r"^_?(?:(?:original_)?inv_freqs?|freqs_cis|position_ids|relative_position_index|attn_mask|causal_mask|"
    r"(?:e_score_)?correction_bias|(?:positional_encoding_)?gaussian_matrix)$"
)
_FILLED = re.compile(
    r"^_?(?:(?:hann_)?window|mel_(?:basis|filters?)|(?:forward|inverse)_basis|std_(?:bias|scale)|"
    r"(?:latents?|pixel|image|data|obs|input)_(?:mean|std|var)|(?:ema_)?cluster_size|embed_avg|final_logits_bias)$"
)


class Start(NamedTuple):
    """The initial value, and its frame: that of the function that makes the parameter, if there is one."""

    node: ast.expr
    frame: Frame


def said(node: ast.Call, scope: Scope, context: Context) -> str:
    """Returns the evidence in a comment at the statement, or above the value that it uses."""
    comment = context.comments_at(scope.file.statement_of(node).lineno)
    given = initial(node)
    if isinstance(given, ast.Name) and given.id in scope.bindings:
        for binding in reaching(scope.bindings[given.id], node.lineno):
            if binding.how == "value" and 0 <= node.lineno - binding.line <= 8:
                comment += " " + context.comments_at(binding.line)
                first = _first_of_block(binding.line, given.id, scope)
                comment += " " + context.comments_at(first)
    if _TRAINED.search(comment):
        return "learned"
    if _ELSEWHERE.search(comment):
        return ""
    found = _UNTRAINED.search(comment)
    return f'its comment says "{found.group(0)}"' if found else ""


def _first_of_block(line: int, name: str, scope: Scope) -> int:
    """Returns the line of the first assignment to a name in the block directly above a line."""
    lines = sorted(b.line for b in scope.bindings[name] if 0 <= line - b.line <= 6)
    return lines[0] if lines else line


def is_chosen(node: ast.Call, name: str, context: Context) -> bool:
    """Returns whether the name, or a condition around it, shows that it is learned."""
    branch = context.file.enclosing(node, ast.If, ast.IfExp, ast.FunctionDef)
    condition = ast.dump(branch.test) if isinstance(branch, (ast.If, ast.IfExp)) else ""
    return re.search("train|learn", f"{name} {condition}", re.IGNORECASE) is not None


def named(node: ast.Call, start: Start | None, name: str, context: Context) -> str:
    """Returns the evidence in the name, or in name and initial value together."""
    if _BUFFER.match(name) and not is_chosen(node, name, context):
        return "it has the name of a buffer"
    if start is None:
        return ""
    given, frame = start
    value = context.values.of(given, frame)
    if not isinstance(value, (Array, Number)):
        return ""
    maker = given.func.attr if isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute) else ""
    if _RUNNING.match(name) and maker in ("zeros", "ones", "full", "array", "zeros_like", "ones_like"):
        return "it has the name and the start of a running statistic"
    if _FILLED.match(name) and maker in ("zeros", "ones", "full", "zeros_like", "ones_like"):
        return "it has the name and the start of a buffer that a checkpoint fills in"
    zero = isinstance(value, Number) and value.value == 0
    if maker in ("array", "asarray") and isinstance(given, ast.Call) and given.args:
        inner = context.values.of(given.args[0], frame)
        zero = isinstance(inner, Number) and inner.value == 0
    if maker in ("zeros", "ones"):
        zero = isinstance(value, Array) and bool(value.scalar)
    return "it has the name and the start of a counter" if zero and _COUNTER.match(name) else ""
