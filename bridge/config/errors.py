"""What pydantic finds, in words: one line per mistake with place, key, what is wrong and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from bridge.config.catalogue import leaves
from bridge.config.rules import GrantSettings, ParentRule, RuleSettings
from bridge.config.types import did_you_mean
from bridge.config.yaml_file import Document, Key, kind_of


def explained(
    error: ValidationError, places: Mapping[Key, str], document: Document | None, tree: type[BaseModel]
) -> str:
    """One line per mistake: place, key, what is wrong, what is allowed."""
    lines = []
    for found in error.errors(include_url=False, include_context=True):
        key: Key = tuple(part for part in found["loc"] if part != "[key]")
        lines.append(_sentence(key, found, places, document, tree))
    lines = sorted(dict.fromkeys(lines), key=_in_order_of_lines)
    shown, more = lines[:20], len(lines) - 20
    return "\n".join(shown + ([f"... and {more} more"] if more > 0 else []))


def _in_order_of_lines(text: str) -> list[str | int]:
    """Sorts `f:9:1` before `f:10:1`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def _sentence(
    key: Key, found: Mapping[str, Any], places: Mapping[Key, str], document: Document | None, tree: type[BaseModel]
) -> str:
    kind, value, context = str(found["type"]), found.get("input"), found.get("ctx") or {}
    place = _place_of(key, places)
    if kind == "extra_forbidden":
        if document is not None:
            place = document.place(key, of_key=True)
        known = _keys_at(tree, key[:-1])
        now = {s.former[0]: s.key for s in leaves(tree)}.get(_path_text(key))
        if now is not None:
            return f"{place}: {_path_text(key)}: no such key; it is called {now} now"
        name = str(key[-1])
        where = f" in {_path_text(key[:-1])}" if len(key) > 1 else ""
        return f"{place}: unknown key {shown(name)}{where}{did_you_mean(name, known)}; there are {', '.join(known)}"
    if "[key]" in found["loc"]:
        place = document.place(key, of_key=True) if document is not None else place
        key = key[:-1]
    secret = key[-1:] in (("token",), ("http_auth",))
    path = "" if place.startswith(("--", "BRIDGE_", "CONSUL_", "KUBECONFIG")) else f"{_path_text(key)}: "
    quoted = "" if secret or kind in _SHAPES or isinstance(value, dict) else f"{shown(value)} "
    return f"{place}: {path}{quoted}{_problem(kind, value, context, str(found['msg']))}"


_SHAPES: Final = {
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
}


def _problem(kind: str, value: object, context: Mapping[str, Any], message: str) -> str:
    if kind == "value_error":
        return str(context.get("error", message))
    if kind in _SHAPES:
        hint = ""
        if kind == "string_type":
            hint = "; put it in quotes" if not isinstance(value, list) else ""
        elif kind in ("list_type", "tuple_type") and isinstance(value, str):
            hint = f": [{shown(value)}]"
        return f"{_SHAPES[kind]}, not {kind_of(value)}{hint}"
    if kind == "missing":
        return "is missing"
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"must be one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
    if kind in ("int_parsing", "int_from_float"):
        return "must be a whole number"
    if kind == "float_parsing":
        return "must be a number"
    if kind == "bool_parsing":
        return "must be true or false"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']:g}"
    return message[:1].lower() + message[1:]


def _place_of(key: Key, places: Mapping[Key, str]) -> str:
    for length in range(len(key), 0, -1):
        place = places.get(key[:length])
        if place is not None:
            return place
    return "settings"


def _path_text(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


_USER = re.compile(r"[^/]*@")


def shown(value: object) -> str:
    """A value in an error: quoted, control characters escaped, cut, without a user and password in front of an `@`."""
    text = repr(_USER.sub("…@", value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_LISTS: Final[Mapping[str, type[BaseModel]]] = {
    "rules": RuleSettings,
    "annotated": GrantSettings,
    "parents": ParentRule,
}
"""Keys whose values are lists of mappings, and what these mappings are."""


def _keys_at(tree: type[BaseModel], key: Key) -> list[str]:
    model: Any = tree
    for part in key:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = _LISTS.get(part) or (field.annotation if field is not None else None)
        model = next((m for m in get_args(model) if m is not NoneType), model)  # of a mapping that may be left out
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return [field.alias or name for name, field in model.model_fields.items()]
