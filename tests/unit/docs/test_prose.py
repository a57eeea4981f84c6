"""The prose check reads documents, messages, docstrings and comments, and no code."""

from __future__ import annotations

import pytest

from tests.support.docs.prose import PHRASES, found_in, main

DOCUMENT = """\
Whoever reads this
sees what
stands there.
"""

CODE = '''\
"""The gate opens; nobody waits."""

somebody = nobody("whoever")  # for ever
raise ValueError(f"{somebody!r}: not reachable; nobody answers, a proxy that stands there does")
'''


def test_an_expression_is_found_in_a_document_also_across_lines() -> None:
    """With its line and what to write instead."""
    found = list(found_in(DOCUMENT, ".md"))
    assert found == [(1, "whoever", PHRASES["whoever"]), (2, "what stands", PHRASES["what stands"])]


def test_of_python_docstrings_comments_and_messages_are_read_and_names_are_not() -> None:
    """A string without a space is a key or a name."""
    found = [(number, phrase) for number, phrase, _ in found_in(CODE, ".py")]
    assert found == [(1, "nobody"), (3, "for ever"), (4, "nobody"), (4, "stands there")]


@pytest.mark.parametrize(
    "line", ["`nobody`", "[x](nobody.md)", "```\nnobody\n```", "mended_at", "forever", "a personal"]
)
def test_quoted_code_and_longer_words_are_not_read(line: str) -> None:
    """Documents name code between backticks, in blocks and in targets of links."""
    assert list(found_in(f"{line}\n", ".md")) == []


def test_nothing_in_the_repository_uses_one(capsys: pytest.CaptureFixture[str]) -> None:
    """What `make lint` runs; here it also shows to those who run the unit tests only."""
    assert main() == 0, capsys.readouterr().out
