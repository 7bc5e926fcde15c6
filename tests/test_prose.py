# SPDX-License-Identifier: Apache-2.0
"""`make prose`: each construction is counted, and a count that gets worse fails."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("prose", ROOT / ".ci" / "prose.py")
prose = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(prose)


@pytest.mark.parametrize(
    ("area", "name", "text"),
    [
        ("docs", "what", "It returns what was saved."),
        ("docs", "says, tells, asks", "The step tells the caller."),
        ("messages", "is no, is none", "there is no checkpoint"),
        ("source", "opens with What, Which, Where, How", "\x00Whether a name is public."),
        ("docs", "you", "Your model counts as you expect."),
        ("source", "if, when, because, for example", "If it fails, for example, it raises."),
    ],
)
def test_a_construction_is_counted(area, name, text):
    """A text with a construction has a count above zero, and a plain sentence has none."""
    assert prose.per_1000_words(text, area)[name] > 0
    assert prose.per_1000_words("The counter adds one.", area)[name] == 0


def test_a_worse_count_fails():
    """More of an unwanted construction, or less of a wanted one, is worse; five per cent are allowed."""
    assert prose.worse(1.1, 1.0, "what")
    assert not prose.worse(1.04, 1.0, "what")
    assert prose.worse(7.0, 8.0, "you")
    assert not prose.worse(9.0, 8.0, "you")


def test_the_texts_are_found(capsys):
    """The check reads docs, docstrings, comments and messages, and passes today."""
    assert {"docs", "source", "messages"} == json.loads(prose.LIMITS.read_text()).keys()
    assert sum("\x00" in text for text in prose.source()) > 500
    assert sum(1 for _ in prose.messages()) > 200
    assert prose.main() == 0
    printed = capsys.readouterr().out
    assert all(f"{area:9}what" in printed for area in ("docs", "source", "messages"))
