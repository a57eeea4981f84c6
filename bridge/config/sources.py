"""The sources of settings: flags, environment and file, each as a layer of values that know their places."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from bridge.config.catalogue import _LIST_RULE_FLAGS, _NARROWING, _REPEATED, RULE_FLAGS, Setting, rule_env
from bridge.config.errors import shown
from bridge.config.types import did_you_mean
from bridge.config.yaml_file import Document, Key
from bridge.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value came from: the rank of its source (0 is the strongest) and the words for it."""

    rank: int
    text: str


@dataclass(slots=True)
class Layer:
    """What one source says: nested values, and the place of each leaf."""

    name: str
    values: dict[str, Any]
    places: dict[Key, str]

    def set(self, path: Sequence[str | int], value: Any, place: str) -> None:
        at: Any = self.values
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
        self.places[tuple(path)] = place

    def drop(self, path: Sequence[str]) -> None:
        at: Any = self.values
        for key in path[:-1]:
            at = at.get(key)
            if not isinstance(at, dict):
                return
        at.pop(path[-1], None)
        self.places.pop(tuple(path), None)

    def has(self, path: Sequence[str]) -> bool:
        at: Any = self.values
        for key in path:
            if not isinstance(at, dict) or key not in at:
                return False
            at = at[key]
        return True


class LayerSource(PydanticBaseSettingsSource):
    """A layer as pydantic-settings knows sources."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        return self._layer.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._layer.values


def flag_layer(leaves: Sequence[Setting], flags: Mapping[str, Any]) -> Layer:
    layer = Layer("flags", {}, {})
    known = {s.flag: s for s in leaves if s.flag}
    for flag, value in flags.items():
        if flag in RULE_FLAGS:
            continue
        layer.set(known[flag].path, list(value) if isinstance(value, (list, tuple)) else value, flag)
    return layer


def own_environment(leaves: Sequence[Setting], environ: Mapping[str, str]) -> Layer:
    layer = Layer("environment", {}, {})
    for setting in leaves:
        text = environ.get(setting.env, "")
        if text:
            layer.set(setting.path, _from_text(setting, text), setting.env)
    return layer


def others_environment(leaves: Sequence[Setting], environ: Mapping[str, str]) -> Layer:
    layer = Layer("Consul's and Kubernetes' environment", {}, {})
    for setting in leaves:
        for variable in setting.also:
            text = environ.get(variable, "")
            if text:
                value = _consuls_bool(variable, text) if setting.is_switch else text
                layer.set(setting.path, value, variable)
    return layer


def file_layer(document: Document | None) -> Layer:
    if document is None:
        return Layer("file", {}, {})
    places = {key: document.place(key) for key in document.values if key}
    # `consul:` with nothing below it says nothing
    content = {k: v for k, v in document.content.items() if v is not None or k == "rules"}
    if content.get("rules", ()) is None:
        del content["rules"]
    return Layer("file", content, places)


def _from_text(setting: Setting, text: str) -> Any:
    return [part.strip() for part in text.split(",") if part.strip()] if setting.is_list else text


def _consuls_bool(variable: str, text: str) -> bool:
    """As Go's strconv.ParseBool, which is what Consul's own tools use."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ConfigurationError(f"{variable}: {shown(text)} must be true or false")


_SERVICE_LINK = re.compile(r"BRIDGE_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_.*)?)")


def unknown_variables(leaves: Sequence[Setting], environ: Mapping[str, str]) -> list[str]:
    """Notes on BRIDGE_ variables that mean nothing to us but look as if they should.

    Only a note, because a Kubernetes Service named `bridge` puts BRIDGE_PORT and the like into every pod of its
    namespace; the earlier name of a setting is an error.
    """
    known = {s.env for s in leaves} | {rule_env(f) for f in RULE_FLAGS} | {"BRIDGE_CONFIG"}
    renamed = [f"{s.former[2]}: no such variable; it is called {s.env} now" for s in leaves if environ.get(s.former[2])]
    if renamed:
        raise ConfigurationError("\n".join(renamed))
    notes = []
    for name in sorted(environ):
        if not name.startswith("BRIDGE_") or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        hint = did_you_mean(name, known, cutoff=0.8)
        if hint:
            notes.append(f"{name}: no such setting{hint}; it is ignored")
    return notes


def overridden(flags: Layer, own: Layer, others: Layer, file: Layer) -> list[str]:
    """Notes on what the file says and a variable of Consul's or Kubernetes' own replaces."""
    notes = []
    for key, variable in others.places.items():
        path = [str(k) for k in key]
        if not file.has(path) or flags.has(path) or own.has(path):
            continue
        said: Any = file.values
        set_: Any = others.values
        for part in path:
            said, set_ = said[part], set_[part]
        if said != set_:
            notes.append(f"{variable} replaces {'.'.join(path)} of {file.places[key]}")
    return notes


def one_of(layers: Sequence[Layer], *paths: Sequence[str]) -> None:
    """Keep only the strongest source's word of settings that mean the same; in one source the first of them wins."""
    for rank, layer in enumerate(layers):
        found = [path for path in paths if layer.has(path)]
        if found:
            for path in found[1:]:
                layer.drop(path)
            for weaker in layers[rank + 1 :]:
                for path in paths:
                    weaker.drop(path)
            return


def rules_from_flags(
    layers: Sequence[Layer], flags: Mapping[str, Any], environ: Mapping[str, str], document: Document | None
) -> str:
    """Make one rule of the rule flags and their variables; say where the rules come from."""
    flag_layer, own_layer, _, file_layer = layers
    given: list[str] = []
    rule = Layer("rule", {}, {})
    for flag, path in RULE_FLAGS.items():
        variable = rule_env(flag)
        if flags.get(flag):
            value, place = flags[flag], flag
        elif environ.get(variable):
            text = environ[variable]
            is_list = flag in _LIST_RULE_FLAGS
            value, place = ([p.strip() for p in text.split(",") if p.strip()] if is_list else text), variable
        else:
            continue
        rule.set(path, list(value) if isinstance(value, (list, tuple)) else value, place)
        given.append(place)
    in_file = file_layer.has(("rules",))
    if in_file and flags.get("--force") and set(given) <= set(_NARROWING):
        given = []  # the file says what is mirrored, these what of it is forced
    if not given:
        return file_layer.places.get(("rules",), document.path if document else "") if in_file else "default"
    if in_file:
        raise ConfigurationError(
            f"{', '.join(given)}: these make a rule, and {file_layer.places[('rules',)]} has rules as well: "
            "use either (bridge cannot know which was meant); leave the flags and variables out, or the file's `rules`"
        )
    layer = flag_layer if any(g.startswith("--") for g in given) else own_layer
    layer.values["rules"] = [rule.values]
    layer.places[("rules",)] = ", ".join(given)
    layer.places[("rules", 0)] = ", ".join(given)
    for key, place in rule.places.items():
        layer.places[("rules", 0, *key)] = place
    return ", ".join(given)


def sync_command(flags: Mapping[str, Any]) -> str:
    """`bridge sync` with the flags of this process, for a shell; what it does is added behind."""
    words = ["bridge", "sync"]
    for flag in _REPEATED:
        value = flags.get(flag)
        for text in value if isinstance(value, (list, tuple)) else [value] if value else []:
            words += [flag, str(text)]
    return shlex.join(words)
