"""Label selectors: what they mean, and what is none."""

from __future__ import annotations

import pytest

from bridge.core import labels

TEAM = {"team": "a", "env": "prod", "example.com/tier": ""}


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("", True),
        ("  ", True),
        ("team=a", True),
        ("team==a", True),
        ("team = a , env in (prod, qa)", True),
        ("team=b", False),
        ("team!=b", True),
        ("team!=a", False),
        ("none!=a", True),
        ("env notin (qa)", True),
        ("env notin (qa,prod)", False),
        ("none notin (qa)", True),
        ("env in (qa)", False),
        ("none in (qa,)", False),
        ("team", True),
        ("none", False),
        ("!none", True),
        ("! team", False),
        ("example.com/tier", True),
        ("example.com/tier=", True),
        ("example.com/tier in (,x)", True),
        ("team=", False),
        ("in in (in)", False),
    ],
)
def test_a_selector_matches_as_in_kubernetes(selector: str, found: bool) -> None:
    """What lacks a label is not equal to any value of it. tests/e2e/test_grants.py asks an API server the same."""
    assert labels.matches(selector, TEAM) is found


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("team=a,", "write key=value"),
        (",team=a", "write key=value"),
        ("team=a env=b", "joined by commas"),
        ("env in prod", "joined by commas"),
        ("env in (prod", "joined by commas"),
        ("-x", "no key of a label"),
        (f"{'a' * 64}=b", "no key of a label"),
        (f"{'a.' * 127}a/x=b", "no key of a label"),
        ("A.com/x", "no key of a label"),
        ("team=a/b", "no value of a label"),
        (f"team={'a' * 64}", "no value of a label"),
        ("team in (a b)", "no value of a label"),
        ("!", "write key=value"),
    ],
)
def test_what_is_no_selector_is_reported(selector: str, said: str) -> None:
    """With where it stops to be one, or the word that is none."""
    with pytest.raises(ValueError, match=said):
        labels.parse(selector)


def test_fields_give_the_same_as_the_string_form() -> None:
    """matchLabels and matchExpressions are joined: all of them have to hold."""
    text = labels.from_fields(
        {"team": "a"},
        [("env", "In", ("prod", "qa")), ("x", "NotIn", ("y",)), ("none", "DoesNotExist", ()), ("team", "Exists", ())],
    )
    assert text == "team in (a),env in (prod,qa),x notin (y),!none,team"
    assert labels.from_fields({}, []) == ""
    assert labels.matches(text, TEAM)
    assert not labels.matches(text, {**TEAM, "none": ""})


@pytest.mark.parametrize(
    ("operator", "values", "said"),
    [("in", ("a",), "there are In, NotIn"), ("In", (), "takes values"), ("Exists", ("a",), "takes no values")],
)
def test_wrong_fields_are_reported(operator: str, values: tuple[str, ...], said: str) -> None:
    """As the API server would refuse them."""
    with pytest.raises(ValueError, match=said):
        labels.from_fields({}, [("env", operator, values)])
