"""Whatever is in the settings file: settings, or a ConfigurationError with the place; never anything else."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.config import load, yaml_file
from bridge.errors import ConfigurationError
from tests.unit.hostile.values import ADDRESSES, HUGE, JUNK, NUMBERS, TEXTS, mostly, one_of_each

SLOW = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
NETWORKS = st.lists(mostly(st.one_of(ADDRESSES, st.sampled_from(["10.0.0.0/8", "::/0", "10.0.0.1/8"]))), max_size=2)
PAIRS = st.dictionaries(TEXTS, mostly(TEXTS), max_size=2)
RULE = one_of_each(
    name=TEXTS, services=st.lists(TEXTS, max_size=2), tags=st.lists(TEXTS, max_size=2), meta=PAIRS, filter=TEXTS,
    datacenters=st.lists(TEXTS, max_size=2), namespace=TEXTS, partition=TEXTS, peer=TEXTS,
    to=one_of_each(namespace=TEXTS, name=TEXTS, port=NUMBERS, port_name=TEXTS, protocol=TEXTS, labels=PAIRS,
                   annotations=PAIRS, labels_from=PAIRS, annotations_from=PAIRS, max_endpoints_per_slice=NUMBERS),
    instances=one_of_each(warning=TEXTS, address=TEXTS, allow_cidrs=NETWORKS, deny_cidrs=NETWORKS, zone_meta=TEXTS),
)  # fmt: skip
FILE = one_of_each(
    owner=TEXTS, consul=one_of_each(address=ADDRESSES, token=TEXTS, wait=TEXTS, connections=NUMBERS),
    run=one_of_each(listen=ADDRESSES, removal_grace_period=TEXTS, shards=NUMBERS), rules=st.lists(RULE, max_size=2),
    guard=one_of_each(removal_threshold=TEXTS, window=TEXTS), log=JUNK, kubernetes=one_of_each(writers=NUMBERS),
)  # fmt: skip


@contextlib.contextmanager
def our_own_errors() -> Iterator[None]:
    """Nothing but a ConfigurationError, of bounded length, on lines that a terminal shows as they are."""
    said = ""
    try:
        yield
    except ConfigurationError as error:
        said = str(error)
    assert len(said) < 20_000
    assert all(line.isprintable() for line in said.split("\n")), said


@SLOW
@given(content=FILE)
def test_any_tree_is_settings_or_a_mistake(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """JSON is YAML, so any tree can be written down."""
    file = tmp_path_factory.mktemp("f") / "bridge.yaml"
    file.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    with our_own_errors():
        load({"--config": str(file)}, {}).core_rules()


@SLOW
@given(raw=st.one_of(st.binary(max_size=200), st.text("&*!|>-: \n[]{}?#'\"%@`<a1.~", max_size=80).map(str.encode)))
def test_any_bytes_are_a_document_or_a_mistake(raw: bytes) -> None:
    """Not even YAML."""
    with our_own_errors():
        yaml_file.parse(raw, "f")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "a: " + "[" * 20_000 + "]" * 20_000,
        "a: " + "{a: " * 20_000 + "1" + "}" * 20_000,
        "a: &a [*a]",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)),
        f"owner: {HUGE}\n",
        f"{HUGE}: 1\n",
        f"rules:\n- services: ['{'*a' * 50_000}']\n",
        "owner: !!python/object/apply:os.system ['true']\n",
        "owner: !!binary '!!'\n",
        "owner: " + "9" * 100_000,
        "rules: 2026-13-45\n",
        "owner: \"\\e[31m\"\n",
        "? [a]\n: b\n",
        "<<: 1\n",
    ],
    ids=lambda text: text[:20].replace("\n", " "),
)  # fmt: skip
def test_what_breaks_parsers_is_a_mistake(text: str, tmp_path: Path) -> None:
    """Depth, aliases without end, values without end, tags that run code: refused, soon and in little memory."""
    file = tmp_path / "bridge.yaml"
    file.write_text(text)
    tracemalloc.start()
    with our_own_errors():
        load({"--config": str(file)}, {}).core_rules()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 256 * 1024 * 1024


@SLOW
@given(variables=st.dictionaries(
    st.sampled_from(["BRIDGE_SERVICES", "BRIDGE_SERVICE", "BRIDGE_NAMESPACE", "BRIDGE_OWNER", "BRIDGE_CONNECTIONS",
                     "CONSUL_HTTP_ADDR", "CONSUL_HTTP_SSL", "BRIDGE_TOKEN", "BRIDGE_LISTEN",
                     "BRIDGE_REMOVAL_GRACE_PERIOD"]),
    st.one_of(TEXTS, ADDRESSES), max_size=4,
))  # fmt: skip
def test_any_environment_is_settings_or_a_mistake(variables: dict[str, str]) -> None:
    """A mistake in a token never shows the token."""
    with our_own_errors():
        load({}, variables).core_rules()
