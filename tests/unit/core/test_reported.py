"""What is reported once, and when it is reported again."""

from __future__ import annotations

import pytest

from bridge.core import reported
from bridge.core.reasons import Code, Reason
from bridge.core.reported import Reported


def foreign(name: str, what: str, manager: str = "mesh.example.org") -> Reason:
    """A slice of others."""
    return Reason(Code.FOREIGN_SLICE, name=name, manager=manager, namespace="default", what=what)


def test_a_warning_is_news_once_and_again_when_it_changes() -> None:
    """Also when it comes back after it was over."""
    found = Reported()
    texts = [["a"], ["a"], ["a", "b"], ["a"], [], ["a"]]
    assert [found.is_news("web", text, 0.0) for text in texts] == [True, False, True, True, False, True]
    assert found.is_news("other", ["a"], 0.0)


def test_a_slice_that_others_write_all_the_time_is_reported_once() -> None:
    """What it has is no news, as long as it is that slice."""
    found = Reported()
    news = [found.is_news("web", [foreign("mesh", f"has 10.9.9.{n}")], float(n)) for n in range(200)]
    assert news == [True] + [False] * 199
    behind = [found.is_news("web", [Reason(Code.MIRROR_BEHIND, what=f"lacks {n}")], 300.0 + n) for n in range(200)]
    assert behind == [True] + [False] * 199


def test_slices_under_new_names_are_reported_once_a_minute() -> None:
    """So are those that come and go. What is left out is reported when the minute is over."""
    found = Reported()
    news = [n for n in range(200) if found.is_news("web", [foreign(f"mesh-{n}", "has 10.9.9.1")], float(n))]
    assert news == [0, 60, 120, 180]
    blinking = [[foreign("mesh", "has 10.9.9.1")] if n % 2 else [] for n in range(300, 500)]
    assert [n for n, text in enumerate(blinking, 300) if found.is_news("web", text, float(n))] == [301, 361, 421, 481]
    both = [foreign("mesh", "has 10.9.9.1"), foreign("late", "has 10.9.9.2")]
    assert [found.is_news("web", both, at) for at in (500.0, 540.0, 541.0, 542.0)] == [False, False, True, False]


def test_what_else_is_reported_is_not_held_up_by_slices() -> None:
    """And no one drives it by writing slices."""
    found = Reported()
    assert found.is_news("web", [foreign("mesh", "has 10.9.9.1")], 0.0)
    assert found.is_news("web", ["a", foreign("other", "has 10.9.9.1")], 1.0)
    assert [found.is_news("web", ["a", foreign("other", f"has 10.9.9.{n}")], 2.0 + n) for n in range(3)] == [False] * 3
    assert not found.is_news("web", ["a"], 10.0)


def test_times_that_make_no_difference_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster has any number of names in its time."""
    monkeypatch.setattr(reported, "REMEMBERED", 10)
    found = Reported()
    for number in range(1000):
        assert found.is_news(number, [foreign("mesh", "has 10.9.9.1")], number * 10.0)
        found.is_news(number, [], number * 10.0)
    assert (len(found._at) <= 11, found._said) == (True, {})
