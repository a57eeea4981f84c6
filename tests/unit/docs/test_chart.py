"""The chart's files that are made from others are not stale; its schema refuses nothing that the bridge takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import catalogue, load
from bridge.errors import ConfigurationError
from tests.support.docs import chart

ROOT = Path(__file__).resolve().parents[3]
SCHEMA: dict[str, Any] = json.loads(chart.SCHEMA.read_text(encoding="utf-8"))
MADE = "run: python -m tests.support.docs.chart"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def wrong(value: Any, schema: dict[str, Any], place: str = "") -> Iterator[str]:
    """What a validator of JSON Schema would say, for the words that the chart's schema uses. Raises on any other."""
    known = {"type", "enum", "properties", "additionalProperties", "items", "pattern", "minimum", "maximum",
             "minLength", "maxLength", "minItems", "required", "$schema", "title", "anyOf"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    types = schema.get("type", [])
    names = types if isinstance(types, list) else [types]
    if names and not any(isinstance(value, TYPES[name]) and (isinstance(value, bool) == (name == "boolean"))
                         for name in names):  # fmt: skip
        yield f"{place}: is no {names}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        for key, part in value.items():
            deeper = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if deeper is False:
                yield f"{place}: there is no {key}"
            else:
                yield from wrong(part, deeper, f"{place}/{key}")
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from wrong(part, schema.get("items", {}), f"{place}/{number}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{place}: {value!r} is not like {schema['pattern']}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value} is too much or too little"


def documented() -> Iterator[Any]:
    """Every settings file in the documents, and the two that the manifests have."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    fence = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    texts = [text for page in pages for text in fence.findall(page.read_text())]
    texts += [path.read_text() for path in sorted((ROOT / "manifests").rglob("bridge.yaml"))]
    for text in texts:
        found = [document for document in yaml.safe_load_all(text) if document]
        if found and not any("kind" in document for document in found):
            yield from found


def test_the_schema_is_what_the_settings_are() -> None:
    """A key that is new, renamed or gone is so in the chart."""
    assert chart.SCHEMA.read_text(encoding="utf-8") == chart.schema_text(), MADE


def test_the_readme_has_the_values_and_their_comments() -> None:
    """As they are now."""
    assert chart.README.read_text(encoding="utf-8") == chart.readme_text(), MADE


def test_the_schema_takes_every_settings_file_of_the_documents() -> None:
    """They pass `bridge check`, too: another test looks."""
    files = list(documented())
    assert len(files) >= 10
    assert [said for file in files for said in wrong(file, SCHEMA["properties"]["config"], "config")] == []


def test_the_schema_takes_every_default() -> None:
    """Each setting that says how its default is written, written so; and the chart's own values."""
    config: dict[str, Any] = {}
    for setting in catalogue():
        *sections, name = setting.path
        part = config
        for section in sections:
            part = part.setdefault(section, {})
        default = setting.field.get_default(call_default_factory=True)
        if default not in (None, "", ()) and not setting.secret:
            part[name] = [*default] if setting.is_list else yaml.safe_load(setting.text(default))
    assert len(config) > 5
    assert list(wrong(config, SCHEMA["properties"]["config"], "config")) == []
    assert list(wrong(yaml.safe_load(chart.VALUES.read_text(encoding="utf-8")), SCHEMA)) == []


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"rule": []}, "config: there is no rule"),
        ({"rules": [{"to": {"nmae": "x"}}]}, "config/rules/0/to: there is no nmae"),
        ({"run": {"removal_grace_period": "30"}}, "config/run/removal_grace_period: '30'"),
        ({"rules": [{"to": {"port": True}}]}, "config/rules/0/to/port: is no"),
        ({"annotated": [{"filter": {}}]}, "config/annotated/0/filter: is no"),
        ({"guard": {"hold_release": "soon"}}, "config/guard/hold_release: 'soon'"),
        ({"consul": {"connections": 1}}, "config/consul/connections: 1 is too"),
    ],
    ids=lambda v: "" if isinstance(v, str) else json.dumps(v),
)
def test_the_schema_refuses_what_the_bridge_refuses(config: dict[str, Any], place: str, tmp_path: Path) -> None:
    """What would only show as a pod that starts again and again."""
    file = tmp_path / "bridge.yaml"
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigurationError):
        load(environ={"BRIDGE_CONFIG": str(file)})
    (said,) = wrong(config, SCHEMA["properties"]["config"], "config")
    assert said.startswith(place)


@pytest.mark.parametrize("value", ["5m", "0", "1h30m", "never", None, "50%", 50, "32MiB"])
def test_every_spelling_is_taken_somewhere(value: object) -> None:
    """Of durations, percentages and sizes, which are texts that stand for numbers."""
    guard, consul = (SCHEMA["properties"]["config"]["properties"][name]["properties"] for name in ("guard", "consul"))
    fields = (guard["window"], guard["hold_release"], guard["removal_threshold"], consul["max_answer"])
    assert any(not list(wrong(value, field)) for field in fields)


def test_a_value_without_a_comment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that no row of the table is empty."""
    file = tmp_path / "values.yaml"
    file.write_text("## Section\n\n# What it is.\nimage: x\nbare: y\n")
    monkeypatch.setattr(chart, "VALUES", file)
    with pytest.raises(LookupError, match="line 5: bare has no comment above it"):
        chart.values()
