"""Two files of the Helm chart, made from what they are about: `python -m tests.support.docs.chart` writes them, tests
fail when one is stale.

- values.schema.json: its part about `config` from the settings' own types, so that what the bridge would refuse is
  refused before anything reaches a cluster. Everything else in it is written by hand and stays.
- README.md: its table from the comments in values.yaml.

The schema may be laxer than the bridge (which has the last word) but never stricter, with one exception: true, false
and whole numbers are YAML's own, not in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bridge.config import Settings

CHART = Path(__file__).resolve().parents[3] / "manifests" / "chart"
SCHEMA = CHART / "values.schema.json"
VALUES = CHART / "values.yaml"
README = CHART / "README.md"

BEGIN, END = "<!-- the table: made from values.yaml -->\n", "<!-- the end of the table -->\n"

Json = dict[str, Any]

# --------------------------------------------------------------------------- the schema of `config`

_DURATION = r"([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+"
_SPELLINGS: tuple[tuple[tuple[str, ...], Json], ...] = (
    (("1s", "30s", "5m"), {"type": "string", "pattern": rf"^({_DURATION}|0)$"}),
    (("1MiB", "32MiB"), {"type": "string", "pattern": "^[0-9]+ *[KMG]iB?$"}),
    (("50%",), {"type": ["string", "integer"], "pattern": "^[0-9]{1,3} *%?$", "minimum": 0, "maximum": 100}),
)
"""What a text is like that is read as a number, by examples of which the settings take at least one."""

_NETWORKS: Json = {"type": "string", "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"}


class _AsWritten(GenerateJsonSchema):
    """The schema of what a user writes, where pydantic would describe what is made of it."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """A field that reads text (`30s`, `50%`, `32MiB`) is found by what it takes; any other may be anything."""
        read = schema["function"]["function"]
        inner = self.generate_inner(schema["schema"])
        numbers = [part.get("type") for part in inner.get("anyOf", [inner]) if part.get("type") != "null"]
        if numbers in (["integer"], ["number"]):
            for examples, spelling in _SPELLINGS:
                if any(_makes_number(read, text) for text in examples):
                    if "anyOf" not in inner:
                        return dict(spelling)
                    return {"type": ["string", "null"], "pattern": spelling["pattern"].replace("|0)$", "|never)$")}
            return inner
        return {}

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """A network is found in the same way; what else a text must be like only the bridge knows."""
        inner = self.generate_inner(schema["schema"])
        read = schema["function"]["function"]
        if inner == {"type": "string"} and _takes(read, "10.0.0.0/8") and not _takes(read, "10.0.0.0/x"):
            return dict(_NETWORKS)
        return inner

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Defaults are the bridge's own business."""
        return self.generate_inner(schema["schema"])


def _takes(read: Callable[..., object], text: str) -> bool:
    """Whether a validator takes this text."""
    try:
        read(text)
    except (ValueError, TypeError, ValidationError):
        return False
    return True


def _makes_number(read: Callable[..., object], text: str) -> bool:
    """Whether a validator makes a number of this text, rather than hand it on."""
    return _takes(read, text) and isinstance(read(text), (int, float))


def config_schema() -> Json:
    """What may stand under the value `config`, without references: an error then names the place in the values."""
    whole = Settings.model_json_schema(by_alias=True, schema_generator=_AsWritten)
    definitions = whole.pop("$defs", {})
    found = _plain(whole, definitions)
    for name, part in found["properties"].items():
        if part.get("type") in ("object", "array"):  # `consul:` with nothing below it says nothing
            found["properties"][name] = {**part, "type": [part["type"], "null"]}
    return found


_TITLES = frozenset({"title", "description", "default", "env", "flag", "also", "secret", "was", "writeOnly", "format"})


def _plain(part: Json, definitions: Mapping[str, Json]) -> Json:
    """One schema with its references put in, and without what does not decide."""
    if "$ref" in part:
        return _plain(definitions[part["$ref"].rsplit("/", 1)[-1]], definitions)
    if "allOf" in part and len(part["allOf"]) == 1:
        return _plain(part["allOf"][0], definitions)
    if "anyOf" in part:
        return _one([_plain(one, definitions) for one in part["anyOf"]])
    found: Json = {}
    for key, value in part.items():
        if key in ("properties", "patternProperties"):
            found[key] = {name: _plain(one, definitions) for name, one in value.items()}
        elif isinstance(value, dict) and key in ("items", "additionalProperties"):
            found[key] = _plain(value, definitions)
        elif key in ("ge", "le"):
            found[{"ge": "minimum", "le": "maximum"}[key]] = value
        elif key not in _TITLES and key not in ("propertyNames", "prefixItems"):
            found[key] = value
    if "enum" in found or "const" in found:
        found.pop("type", None)
    return found


def _one(parts: list[Json]) -> Json:
    """One schema for several, where that says the same: the errors of alternatives are hard to read."""
    null = {"type": "null"}
    rest = [part for part in parts if part != null]
    if len(rest) != 1:
        return {"anyOf": parts}
    (only,) = rest
    if len(rest) == len(parts) or not only:
        return only
    if "enum" in only:
        return {**only, "enum": [*only["enum"], None]}
    types = only["type"] if isinstance(only["type"], list) else [only["type"]]
    return {**only, "type": [*types, "null"]}


def schema_text() -> str:
    """values.schema.json as it should be."""
    schema: Json = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


# --------------------------------------------------------------------------- the table of README.md


@dataclass(frozen=True, slots=True)
class Value:
    """One row: where it is, its default, what the comment above it says. `section` is the heading above."""

    path: str
    default: Any
    text: str
    section: str


def values() -> list[Value]:
    """Every value that has a comment of its own, in the file's order. Raises LookupError for one that has none."""
    text = VALUES.read_text(encoding="utf-8")
    lines = text.splitlines()
    headings = [(number, line[3:]) for number, line in enumerate(lines) if line.startswith("## ")]
    found: list[Value] = []

    def walk(node: yaml.MappingNode, path: str) -> None:
        for key, value in node.value:
            name = f"{path}{key.value}"
            comment = _comment(lines, key.start_mark.line, key.start_mark.column)
            if comment:
                section = [heading for number, heading in headings if number < key.start_mark.line][-1]
                found.append(Value(name, yaml.SafeLoader("").construct_document(value), comment, section))
            elif isinstance(value, yaml.MappingNode) and value.value:
                walk(value, f"{name}.")
            else:
                raise LookupError(f"values.yaml, line {key.start_mark.line + 1}: {name} has no comment above it")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    walk(root, "")
    return found


def _comment(lines: list[str], line: int, column: int) -> str:
    """The comment that stands right above a line, as deep as the line itself."""
    found: list[str] = []
    for above in reversed(lines[:line]):
        if not above.startswith(" " * column + "# "):
            break
        found.insert(0, above.strip().removeprefix("# "))
    return " ".join(found)


def table() -> Iterator[str]:
    """The lines between the two marks."""
    section = ""
    for value in values():
        if value.section != section:
            section = value.section
            yield f"\n### {section}\n"
            yield "| value | default | what it does |\n| --- | --- | --- |"
        default = re.sub(r"[|]", r"\\|", json.dumps(value.default, ensure_ascii=False))
        text = re.sub(r"[|]", r"\\|", value.text)
        yield f"| `{value.path}` | {'' if value.default in ('', None) else f'`{default}`'} | {text} |"


def readme_text() -> str:
    """README.md as it should be."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(table()) + "\n\n" + END + after


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    README.write_text(readme_text(), encoding="utf-8")
