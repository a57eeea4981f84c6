"""Reads a YAML file into plain values and remembers where each of them stands, so that errors can name the place.

PyYAML parses; this module only walks its node tree, because `yaml.safe_load` forgets the positions and lets a later
key silently replace an earlier one of the same name. It knows nothing of settings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bridge.errors import ConfigurationError

Key = tuple[str | int, ...]
"""The way to a value from the top of the file: `("rules", 0, "to", "namespace")`."""

MAX_BYTES = 4 * 1024 * 1024
"""A file above this is not settings but a mistake (a dump, a device)."""

MAX_NODES = 200_000
"""Aliases can make a small file huge ("billion laughs"); this bounds what is built of it."""

MAX_DEPTH = 50
"""Settings are five deep. PyYAML's C loader recurses, and takes the process with it when a file is deep enough."""

QUOTED = 60
"""Characters of a value that an error quotes."""

_QUOTED_TEXT = re.compile(r"""('[^'<]?'|'<[a-z ]+>')|'[^']*'|"[^"]*\"""")
"""What PyYAML quotes: single characters and names of its tokens (`'<block end>'`), which stay, and the file's text."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in the file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """The file's values. `keys` says where each key (or list entry) stands, `values` where its value begins.

    `digest`: of the bytes that were read, see `digest_of`.
    """

    path: str
    content: Mapping[str, Any]
    keys: Mapping[Key, Mark]
    values: Mapping[Key, Mark]
    digest: bytes = b""

    def place(self, key: Key, of_key: bool = False) -> str:
        """`bridge.yaml:7:3` for the longest known beginning of `key`."""
        marks = self.keys if of_key else self.values
        for length in range(len(key), -1, -1):
            mark = marks.get(key[:length])
            if mark is not None:
                return f"{self.path}:{mark.line}:{mark.column}"
        return self.path


def read(path: str) -> Document:
    """Read and parse `path`. Raises ConfigurationError, with line and column where there are any."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(f"{path}: larger than {MAX_BYTES // 1024 // 1024} MiB: is this the settings file?")
    return replace(parse(raw, path), digest=digest_of(raw))


def digest_of(raw: bytes) -> bytes:
    """What tells one content of a file from another."""
    return hashlib.blake2b(raw).digest()


def parse(raw: bytes | str, path: str) -> Document:
    """Parse the text of `path`. An empty file is an empty mapping."""
    loader = None
    try:
        _bound_depth(raw, path)
        loader = _Loader(raw)
        node = loader.get_single_node()
        walk = _Walk(path, loader)
        content = {} if node is None else walk.build(node, ())
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(fault_of(error, path) + _tab_remedy(error, raw)) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}:1:1: must be a mapping (`key: value` lines), not {kind_of(content)}")
    return Document(path, content, walk.keys, walk.values)


def fault_of(error: yaml.MarkedYAMLError, path: str) -> str:
    """Where the text of `path` is not YAML and why.

    PyYAML's own message quotes the line, which may hold a token: raise what you make of it `from None`, because the log
    level debug shows tracebacks.
    """
    at = error.problem_mark or error.context_mark
    place = f"{path}:{at.line + 1}:{at.column + 1}" if at is not None else path
    problem = " ".join(t for t in (error.context, error.problem) if t)
    return f"{place}: not valid YAML: {unquoted(problem)}"


def _tab_remedy(error: yaml.MarkedYAMLError, raw: bytes | str) -> str:
    """How to fix a tab that YAML does not take as indentation; "" where there is none at the place."""
    lines = (raw if isinstance(raw, str) else raw.decode("utf-8", "replace")).split("\n")
    at = error.problem_mark
    if at is None or at.line >= len(lines) or lines[at.line][at.column : at.column + 1] != "\t":
        return ""
    return "; there is a tab: YAML is indented with spaces, so replace it with spaces"


def unquoted(problem: str) -> str:
    """Without what it quotes of the file (a token that begins with `*` or `!` is an alias or a tag to YAML)."""
    return _QUOTED_TEXT.sub(lambda match: match[1] or "'...'", problem)


def _bound_depth(raw: bytes | str, path: str) -> None:
    """Look at the events first: reading them needs no recursion."""
    depth = 0
    for event in yaml.parse(raw, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            mark = event.start_mark
            place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else path
            raise ConfigurationError(f"{place}: nested deeper than {MAX_DEPTH} levels")


def kind_of(value: object) -> str:
    """What a value is, in YAML's words."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a {type(value).__name__}"


class _Walk:
    """Builds plain values of a node tree and notes the marks on the way."""

    def __init__(self, path: str, loader: Any) -> None:
        self.keys: dict[Key, Mark] = {}
        self.values: dict[Key, Mark] = {}
        self._path = path
        self._loader = loader
        self._nodes = 0
        self._above: set[int] = set()

    def build(self, node: yaml.Node, key: Key) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ConfigurationError(f"{self._path}: more than {MAX_NODES} values, aliases counted")
        self.values[key] = _mark(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._above:
            raise ConfigurationError(f"{self._at(node)}: an alias that contains itself")
        self._above.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._entry(child, (*key, n)) for n, child in enumerate(node.value)]
            return self._mapping(node, key)
        finally:
            self._above.discard(id(node))

    def _entry(self, child: yaml.Node, key: Key) -> Any:
        self.keys[key] = _mark(child)
        return self.build(child, key)

    def _mapping(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        seen: dict[str, yaml.Node] = {}
        for key_node, _ in node.value:
            name = self._name(key_node)
            if name in seen and key_node.tag != "tag:yaml.org,2002:merge":
                first = _mark(seen[name])
                quoted = repr(name[:QUOTED])
                raise ConfigurationError(
                    f"{self._at(key_node)}: the key {quoted} is here twice; it stands in line {first.line} already"
                )
            seen[name] = key_node
        self._loader.flatten_mapping(node)  # `<<: *anchor`; the mapping's own keys come last and win
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            name = self._name(key_node)
            self.keys[(*key, name)] = _mark(key_node)
            values[name] = self.build(child, (*key, name))
        return values

    def _name(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigurationError(f"{self._at(node)}: a key must be text")
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node, deep=True)
        except ValueError as error:  # `2026-13-45` looks like a date and is none
            raise ConfigurationError(f"{self._at(node)}: {node.value[:QUOTED]!r}: {error}; put it in quotes") from error

    def _at(self, node: yaml.Node) -> str:
        mark = _mark(node)
        return f"{self._path}:{mark.line}:{mark.column}"


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)
