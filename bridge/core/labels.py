"""Label selectors, as Kubernetes has them: `team=a,env in (prod, qa),!legacy`, or matchLabels and matchExpressions.

Evaluated here, not by the API server: one watch of the namespaces serves all selectors, a mistake is reported with its
place before anything runs, and the pure core can decide who was granted what. A test compares the two on a real server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
_KEY = re.compile(rf"(?:(?P<prefix>{_PREFIX})/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_PREFIX_LIMIT = 253
_REQUIREMENT = re.compile(
    r"\s*(?:!\s*(?P<absent>[^\s,()!=]+)"
    r"|(?P<key>[^\s,()!=]+)(?:\s*(?P<equal>==|=|!=)\s*(?P<value>[^\s,()!=]*)"
    r"|\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*"
)
_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. `operator`: in, notin, exists or ! (no such label)."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes has it: what lacks the label is `notin` any values."""
        match self.operator:
            case "in":
                return labels.get(self.key) in self.values
            case "notin":
                return labels.get(self.key) not in self.values
            case "exists":
                return self.key in labels
            case _:
                return self.key not in labels

    def __str__(self) -> str:
        match self.operator:
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case operator:
                return f"{self.key} {operator} ({','.join(self.values)})"


def matches(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether labels meet every requirement of a selector; an empty one asks for nothing."""
    return all(requirement.matches(labels) for requirement in parse(selector))


@lru_cache(maxsize=1024)
def parse(selector: str) -> tuple[Requirement, ...]:
    """The requirements of a selector in the string form. Raises ValueError with a sentence."""
    found: list[Requirement] = []
    position = 0
    while selector.strip():
        match = _REQUIREMENT.match(selector, position)
        if match is None:
            raise ValueError(f"is no label selector at {selector[position:]!r}; write key=value, key in (a, b), !key")
        found.append(_checked(_read(match)))
        position = match.end()
        if position == len(selector):
            break
        if selector[position] != ",":
            raise ValueError(f"is no label selector at {selector[position:]!r}; requirements are joined by commas")
        position += 1
    return tuple(found)


def _read(found: re.Match[str]) -> Requirement:
    if found["absent"] is not None:
        return Requirement(found["absent"], "!")
    if found["equal"] is not None:
        return Requirement(found["key"], "notin" if found["equal"] == "!=" else "in", (found["value"],))
    if found["set"] is not None:
        return Requirement(found["key"], found["set"], tuple(value.strip() for value in found["values"].split(",")))
    return Requirement(found["key"], "exists")


def _checked(requirement: Requirement) -> Requirement:
    match = _KEY.fullmatch(requirement.key)
    if match is None or len(match["prefix"] or "") > _PREFIX_LIMIT:
        raise ValueError(f"has {requirement.key!r} in it, which is no key of a label ([prefix/]name)")
    wrong = next((value for value in requirement.values if not _VALUE.fullmatch(value)), None)
    if wrong is not None:
        raise ValueError(f"has {wrong!r} in it, which is no value of a label")
    return requirement


def from_fields(match_labels: Mapping[str, str], match_expressions: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """The string form of `matchLabels` and `matchExpressions` (key, operator, values). Raises ValueError."""
    found = [_checked(Requirement(key, "in", (value,))) for key, value in sorted(match_labels.items())]
    for key, operator, values in match_expressions:
        if operator not in _OPERATORS:
            raise ValueError(f"has the operator {operator!r}; there are {', '.join(_OPERATORS)}")
        if bool(values) is not (operator in ("In", "NotIn")):
            needs = "no values" if values else "values"
            raise ValueError(f"has an expression on {key!r} with {operator}, which takes {needs}")
        found.append(_checked(Requirement(key, _OPERATORS[operator], tuple(values))))
    return ",".join(map(str, found))
