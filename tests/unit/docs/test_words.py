"""Words that have gone are found when they come back, alone or in a name."""

from __future__ import annotations

import pytest

from tests.support.docs.words import WORDS, files, found_in


@pytest.mark.parametrize("line", ["the doorbell rings", "_start_doorbells()", "Doorbell: x", "a `deaf` one"])
def test_a_private_word_is_found(line: str) -> None:
    """With its line and what to say."""
    ((number, word, instead),) = found_in(f"nothing here\n{line}")
    assert (number, WORDS[word.lower()]) == (2, instead)


@pytest.mark.parametrize("line", ["warehouse", "deafening", "labels", "belly", "household"])
def test_a_word_that_only_contains_one_is_none(line: str) -> None:
    """They are whole words, or whole parts of names."""
    assert list(found_in(line)) == []


def test_the_code_and_its_documents_are_read() -> None:
    """Not an empty set."""
    names = {str(path.relative_to(path.parents[2])) for path in files() if "bridge/core" in str(path)}
    assert len(names) > 10
