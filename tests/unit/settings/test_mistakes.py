"""A mistake in the settings is reported with its place, what is allowed, and what was probably meant."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from bridge.config import duration_text, load, parse_duration
from bridge.core.model import Parent, RouteRule
from bridge.errors import ConfigurationError

with pytest.raises(ValueError, match="month must be in") as _said:
    datetime.date(2026, 13, 45)
NO_DATE = str(_said.value)
"""What Python says of such a date: the versions word it differently."""


def mistake(tmp_path: Path, text: str) -> str:
    """The messages about a YAML file, the file's own path shortened to F."""
    file = tmp_path / "bridge.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load({"--config": str(file)}, {})
    return str(caught.value).replace(str(file), "F")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ownr: x\n", "F:1:1: unknown key 'ownr' (did you mean owner?); there are owner, policy, adopt, log,"),
        ("consul:\n  adress: x\n", "F:2:3: unknown key 'adress' in consul (did you mean address?); there are address,"),
        ("rules:\n- servces: [a]\n", "F:2:3: unknown key 'servces' in rules[0] (did you mean services?); there"),
        ("rules:\n- to: {prt: 1}\n", "F:2:8: unknown key 'prt' in rules[0].to (did you mean port?)"),
        ("consul:\n  wait: 30\n", "F:2:9: consul.wait: 30 has no unit; write 30s, 30m or 30h"),
        ("run: {removal_grace_period: 1.5}\n", "F:1:29: run.removal_grace_period: 1.5 has no unit"),
        ("run: {removal_grace_period: 1:30}\n", "F:1:29: run.removal_grace_period: 90 has no unit"),
        ("run: {resync: soon}\n", "F:1:15: run.resync: 'soon' is not a duration; durations are written 250ms, 30s, 5m"),
        ("run: {removal_grace_period: 8d}\n", "F:1:29: run.removal_grace_period: '8d' must be between 0s and 7d"),
        ("run: {resync: [1s]}\n", "F:1:15: run.resync: ['1s'] must be a duration (30s, 5m, 1h30m), not a list"),
        ("consul:\n\taddress: x\n", "F:2:1: not valid YAML: while scanning for the next token found character "
         "that cannot start any token; there is a tab: YAML is indented with spaces, so replace it with spaces"),
        ("run:\n  grace: 1s\n", "F:2:3: run.grace: no such key; it is called run.removal_grace_period now"),
        ("run: {installation: x}\n", "F:1:7: run.installation: no such key; it is called run.instance_name now"),
        ("guard: {rebuild_grace: 1s}\n", "F:1:9: guard.rebuild_grace: no such key; it is called guard.rest"),
        ("dns: {parallel: 2}\n", "F:1:7: dns.parallel: no such key; it is called dns.max_concurrent now"),
        ("retry: {object: {floor: 1s}}\n", "retry.object.floor: no such key; it is called retry.object.init"),
        ("retry: {consul: {cap: 1s}}\n", "F:1:18: retry.consul.cap: no such key; it is called retry.consul.max_in"),
        ("consul: {wait: 61s}\n", "F:1:16: consul.wait: '61s' must be between 1s and 1m"),
        ("consul: {connections: many}\n", "F:1:23: consul.connections: 'many' must be a whole number"),
        ("consul: {connections: 1}\n", "F:1:23: consul.connections: 1 must be at least 2"),
        ("consul: {connections: yes}\n", "F:1:23: consul.connections: True must be a whole number, not true/false"),
        ("consul: {verify: maybe}\n", "F:1:18: consul.verify: 'maybe' must be true or false"),
        ("consul: 5\n", "F:1:9: consul: must be a mapping, not a number"),
        ("run: {consul_ui: 'javascript:alert(1)'}\n", "F:1:18: run.consul_ui: 'javascript:alert(1)' must be"),
        ("run: {consul_ui: consul.example.com}\n", "F:1:18: run.consul_ui: 'consul.example.com' must be"),
        ("run: {consul_ui: 'http://a:b@consul'}\n", "must be the address of a page without a user"),
        ("owner: 5\n", "F:1:8: owner: must be text, not a number; put it in quotes"),
        ("owner: -x\n", "F:1:8: owner: '-x' must be a label value"),
        ("policy: snyc\n", "F:1:9: policy: 'snyc' must be one of sync, upsert-only, create-only (did you mean sync?)"),
        ("adopt: all\n", "F:1:8: adopt: 'all' must be one of never, unowned, consul-k8s"),
        ("log: {level: loud}\n", "F:1:14: log.level: 'loud' must be one of debug, info, warning, error"),
        ("guard: {panic_threshold: 120%}\n", "F:1:26: guard.panic_threshold: '120%' must be a percentage"),
        ("guard: {panic_threshold: yes}\n", "must be a percentage (50%), not true/false"),
        ("guard: {hold_release: later}\n", "F:1:23: guard.hold_release: 'later' is not a duration"),
        ("retry: {consul: {initial_interval: 5m, max_interval: 1s}}\n", "retry.consul: "),
        ("retry: {consul: {multiplier: 0.5}}\n", "F:1:30: retry.consul.multiplier: 0.5 must be at least 1"),
        ("run: {listen: '9480'}\n", "F:1:15: run.listen: '9480' must be HOST:PORT, for instance 127.0.0.1:9480"),
        ("run: {listen: '::1:80'}\n", "must have its IPv6 address in brackets: [::1]:80"),
        ("run: {listen: 'a:99999'}\n", "must be HOST:PORT"),
        ("run: {listen: '[]:80'}\n", "must be HOST:PORT"),
        ("consul: {address: 'ftp://x'}\n", "F:1:19: consul.address: 'ftp://x' must begin with http://, https:// or unix://"),
        ("consul: {address: 'unix://run/c.sock'}\n", "must have the socket's whole path: unix:///run/consul/http.sock"),
        ("consul: {address: 'unix:///c.sock', tls: true}\n", "a Unix socket (consul.address) is spoken to without TLS"),
        ("consul: {max_answer: 64}\n", "F:1:22: consul.max_answer: 64 is not a size; sizes are written 512KiB, 32MiB"),
        ("consul: {max_answer: 5KiB}\n", "consul.max_answer: '5KiB' must be between 1MiB and 4GiB"),
        ("consul: {address: 'http://u:p@h'}\n", "must not have a user and password in it; use consul.http_auth"),
        ("consul: {address: 'h:port'}\n", "is not an address"),
        ("kubernetes: {max_answer: 64}\n", "kubernetes.max_answer: 64 is not a size; sizes are written 512KiB, 32MiB"),
        ("kubernetes: {max_answer: 5KiB}\n", "kubernetes.max_answer: '5KiB' must be between 1MiB and 1GiB"),
        ("consul: {address: 'a b'}\n", "has a host name that cannot be"),
        ("consul: {client_cert: /x}\n", "F:1:23: consul.client_cert needs consul.client_key as well"),
        ("kubernetes: {watch_namespaces: [A]}\n", "F:1:33: kubernetes.watch_namespaces[0]: 'A' must be * or a"),
        ("kubernetes: {watch_namespaces: a}\n", "F:1:32: kubernetes.watch_namespaces: must be a list, not text"),
        ("rules: {}\n", "F:1:8: rules: must be a list, not a mapping"),
        ("rules: [5]\n", "F:1:9: rules[0]: must be a mapping, not a number"),
        ("rules:\n- services: a\n", "F:2:13: rules[0].services: must be a list, not text: ['a']"),
        ("rules:\n- services: ['']\n", "F:2:14: rules[0].services[0]: '' must not be empty; '*' selects every service"),
        ("rules:\n- tags: [1]\n", "F:2:10: rules[0].tags[0]: must be text, not a number; put it in quotes"),
        ("rules:\n- meta: {env: yes}\n", "F:2:15: rules[0].meta.env: must be text, not true/false; put it in quotes"),
        ("rules:\n- to: {name: {service}}\n", "F:2:14: rules[0].to.name: must be text, not a mapping; put it in"),
        ("rules:\n- to: {name: '{svc}'}\n", "'{svc}' knows no {svc} (did you mean service?); there are {service} "),
        ("rules:\n- to: {name: '{service'}\n", "F:2:14: rules[0].to.name: '{service' is not a template"),
        ("rules:\n- to: {name: '{service!r}'}\n", "is not a template: braces only around one of"),
        ("rules:\n- to: {name: '{{service}}'}\n", "is not a template: braces only around one of"),
        ("rules:\n- to: {name: 'A-{service}'}\n", "may have lower-case letters, digits and - beside its placeholders"),
        ("rules:\n- to: {name: '-x'}\n", "F:2:14: rules[0].to.name: '-x' must be a DNS label"),
        ("rules:\n- to: {name: ''}\n", "F:2:14: rules[0].to.name: '' must not be empty"),
        ("rules:\n- to: {namespace: kube_system}\n", "F:2:19: rules[0].to.namespace: 'kube_system' may have"),
        ("rules:\n- to: {port: 70000}\n", "F:2:14: rules[0].to.port: 70000 must be at most 65535"),
        ("rules:\n- to: {port_name: My_Port}\n", "rules[0].to.port_name: 'My_Port' must be a DNS label"),
        ("rules:\n- to: {protocol_from: {udp: UDP}}\n", "must be tag:TAG or meta:KEY=VALUE"),
        ("rules:\n- to: {protocol_from: {'tag:udp': QUIC}}\n", "'QUIC' must be one of TCP, UDP, SCTP"),
        ("rules:\n- to: {type: Headless, hostname_from: tag:x}\n", "F:2:39: rules[0].to.hostname_from: 'tag:x' must"),
        ("rules:\n- to: {hostname_from: node, type: ClusterIP}\n", "F:2:23: rules[0].to.hostname_from: 'node' needs"),
        ("rules:\n- to: {hostname_from: node}\n", "needs `type: Headless`: DNS has names of single endpoints for h"),
        ("rules:\n- to: {type: NodePorts}\n", "must be one of ClusterIP, NodePort, LoadBalancer, Headless"),
        (
            "rules:\n- to: {output: endpoint}\n",
            "must be one of endpoints, endpointslices, both (did you mean endpoints?)",
        ),
        ("rules:\n- to: {protocol: tcp}\n", "must be one of TCP, UDP, SCTP"),
        ("rules:\n- to: {max_endpoints_per_slice: 1001}\n", "must be at most 1000"),
        ("rules:\n- to: {labels: {'a b': x}}\n", "'a b' is not a key that Kubernetes takes"),
        ("rules:\n- to: {labels: {a: 'x y'}}\n", "F:2:20: rules[0].to.labels.a: 'x y' must be empty or a label value"),
        ("rules:\n- to: {labels: {b: c, a b: x}}\n", "F:2:23: rules[0].to.labels: 'a b' is not a key"),
        ("rules:\n- to: {labels_from: {a: meta}}\n", "F:2:25: rules[0].to.labels_from.a: 'meta' must be meta:KEY, n"),
        ("rules:\n- to: {annotations_from: {a: 'tag:'}}\n", "annotations_from.a: 'tag:' must be meta:KEY, node-meta"),
        ("rules:\n- to: {labels_from: {consul-bridge/x: tags}}\n", "'consul-bridge/x' is set by the bridge or by"),
        ("rules:\n- to: {labels_from: {app.kubernetes.io/managed-by: tags}}\n", "is set by the bridge or by Kubern"),
        ("rules:\n- to: {annotations_from: {endpointslice.kubernetes.io/x: tags}}\n", "is set by the bridge or by"),
        ("rules:\n- to: {labels_from: {a: tags}, labels: {a: x}}\n", "F:2:7: rules[0].to: 'a' is in labels and in lab"),
        ("rules:\n- {peer: cloud, services: ['a*']}\n", "F:2:10: rules[0].peer: only the services of consul.namesp"),
        ("rules:\n- {namespace: team}\n", "elsewhere `services` must be full names, not left out"),
        ("kubernetes: {nodes: [A_B]}\n", "F:1:22: kubernetes.nodes[0]: 'A_B' must be * or the name of a node"),
        ("rules:\n- to: {labels: {consul-bridge/owner: x}}\n", "'consul-bridge/owner' is set by the bridge"),
        ("rules:\n- to: {annotations: {kubernetes.io/service-name: x}}\n", "is set by the bridge or by Kubernetes"),
        ("rules:\n- instances: {min_ready: 101%}\n", "F:2:26: rules[0].instances.min_ready: '101%' must be a whole n"),
        ("rules:\n- instances: {min_ready: true}\n", "min_ready: True must be a whole number from 1 on (2), or a"),
        ("rules:\n- instances: {settle: 5}\n", "F:2:23: rules[0].instances.settle: 5 has no unit; write 5s, 5m or 5h"),
        ("rules:\n- instances: {settle: 2h}\n", "rules[0].instances.settle: '2h' must be between 0s and 1h"),
        ("rules:\n- instances: {keep_last_ready: true}\n", "F:2:15: unknown key 'keep_last_ready' in rules[0]."),
        ("rules:\n- instances: {critical: ready}\n", "instances.critical: 'ready' must be one of not-ready, omit"),
        ("rules:\n- instances: {allow_cidrs: [10.0.0.1/8]}\n", "has bits of a host in it; the network is 10.0.0.0/8"),
        ("rules:\n- instances: {deny_cidrs: [lan]}\n", "F:2:28: rules[0].instances.deny_cidrs[0]: 'lan' is not"),
        ("rules:\n- instances: {address: 'a b'}\n", "must be auto, service, node or the name of a tagged address"),
        ("annotated: [{namespace_selector: 'team in a'}]\n",
         "F:1:34: annotated[0].namespace_selector: 'team in a' is no label selector at 'in a'"),
        ("annotated: [{namespace_selector: 7}]\n", "must be a label selector (team=a,env in (prod, qa)), not a number"),
        ("annotated: [{namespace_selector: {matchLabel: {a: b}}}]\n",
         "F:1:34: annotated[0].namespace_selector: has the key 'matchLabel'; there are matchLabels, matchExpressions"),
        ("annotated: [{namespace_selector: {matchLabels: {a: true}}}]\n", "put true, false and numbers in quotes"),
        ("annotated: [{namespace_selector: {matchExpressions: {key: a}}}]\n", "no list of {key, operator, values}"),
        ("annotated: [{namespace_selector: {matchExpressions: [{key: a}]}}]\n", "no list of {key, operator, values}"),
        ("annotated: [{namespace_selector: {matchExpressions: [{key: a, operator: In, values: b}]}}]\n",
         "has values in matchExpressions that are no list"),
        ("annotated: [{namespace_selector: {matchExpressions: [{key: a, operator: In, values: [1]}]}}]\n",
         "has a value in matchExpressions that is no text"),
        ("annotated: [{namespace_selector: {matchExpressions: [{key: a, operator: Is}]}}]\n",
         "has the operator 'Is'; there are In, NotIn, Exists, DoesNotExist"),
        ("rules:\n- {datacenters: [a, b], combine: unoin}\n", "F:2:34: rules[0].combine: 'unoin' must be one of"),
        ("rules:\n- {datacenters: [a, b], combine: unoin}\n", "(did you mean union?)"),
        ("rules:\n- {failover_below: 2}\n", "F:2:20: rules[0].failover_below: it is about failing over; write"),
        ("rules:\n- {combine: union, datacenters: [a, b], failback_after: 1m}\n", "rules[0].failback_after: it is"),
        ("rules:\n- {combine: failover, datacenters: [a, b], unreachable_after: 1m}\n",
         "F:2:63: rules[0].unreachable_after: an unreachable datacenter keeps the traffic unless `failover_when"),
        ("policy: create-only\nrules:\n- {datacenters: [a, b], combine: failover}\n",
         "F:3:34: rules[0].combine: the policy create-only leaves what exists as it is"),
        ("rules:\n- {combine: failover, failover_below: 0}\n", "F:2:39: rules[0].failover_below: 0 must be a whole"),
        ("rules:\n- {combine: failover, failover_below: 101%}\n", "or a percentage from 1 to 100 (30%)"),
        ("rules:\n- {combine: failover, failover_below: yes}\n", "failover_below: True must be a whole number from 1"),
        ("rules:\n- {combine: failover, failover_when: unreachabel}\n", "(did you mean unreachable?)"),
        ("rules:\n- {combine: failover, failover_bellow: 1}\n", "(did you mean failover_below?)"),
        ("rules:\n- {combine: failover, datacenters: [a, b], to: {namespace: '{datacenter}'}}\n", "to.namespace: {dat"),
        ("rules:\n- {combine: union}\n", "F:2:13: rules[0].combine: it makes one Service of several datacenters"),
        ("rules:\n- {datacenters: [a], combine: union}\n", "F:2:31: rules[0].combine: it makes one Service of several"),
        ("rules:\n- {datacenters: [a, b, a], combine: union}\n", "F:2:24: rules[0].datacenters.2: 'a' is there twice"),
        ("rules:\n- {datacenters: [a, b], combine: union, to: {name: 'x-{datacenter}'}}\n",
         "F:2:52: rules[0].to.name: {datacenter} gives each datacenter a Service of its own; leave it out, or"),
        ("rules:\n- {datacenters: [a, b], combine: union, instances: {min_ready: 1}}\n",
         "F:2:64: rules[0].instances.min_ready: it counts the instances of one datacenter; leave it out beside"),
        ("rules:\n- {name: a}\n- {name: a}\n", "F:3:10: rules[1].name: 'a' is the name of rules[0] already"),
        ("rules:\n- filter: \"a\\tb\"\n", "rules[0].filter: 'a\\tb' has control characters in it"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_names_its_place(text: str, expected: str, tmp_path: Path) -> None:
    """File, line, column, key, what is wrong with it and what is allowed."""
    assert expected in mistake(tmp_path, text)


ROUTE = "rules:\n- to:\n    route:\n"
GATEWAY = "      parents: [{name: a}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("      parents: [{sectionName: b}]\n", "F:4:18: unknown key 'sectionName' in rules[0].to.route.parents[0] "
         "(did you mean section_name?); there are name, namespace, section_name, port"),
        ("      parents: [{namespace: a}]\n", "F:4:17: rules[0].to.route.parents[0].name: is missing"),
        ("      parents: [{name: A}]\n", "F:4:24: rules[0].to.route.parents[0].name: 'A' must be a name as Kubernetes"),
        ("      hostnames: [a.example.com]\n", "F:4:7: rules[0].to.route: must have parents: the Gateways that take"),
        (GATEWAY, "F:4:7: rules[0].to.route: must have hostnames, or a path: it would take every request of its"),
        (GATEWAY + "      hostnames: ['{srv}.x']\n", "F:5:19: rules[0].to.route.hostnames[0]: '{srv}.x' is not a "
         "template: braces only around one of {name} {service} {datacenter}"),
        (GATEWAY + "      hostnames: [A.x]\n", "F:5:19: rules[0].to.route.hostnames[0]: 'A.x' must be a host name in"),
        (GATEWAY + "      hostnames: [10.0.0.1]\n", "no IP address"),
        (GATEWAY + "      path: api\n", "F:5:13: rules[0].to.route.path: 'api' must be an absolute path"),
        (GATEWAY + "      path: /a/../b\n", "without %, //, . and .. in it"),
        (GATEWAY + "      path: /x\n      port: 0\n", "F:6:13: rules[0].to.route.port: 0 must be the name of a port"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_route_names_its_place(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in mistake(tmp_path, ROUTE + text)


def test_a_route_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    parent = "{name: a, namespace: b, section_name: c, port: 443}"
    file.write_text(f"{ROUTE}      parents: [{parent}]\n      hostnames: ['*.{{tag:x}}.y']\n      port: 80\n")
    (rule,) = load({"--config": str(file)}, {}).core_rules()
    assert rule.to.route == RouteRule(parents=(Parent("a", "b", "c", 443),), hostnames=("*.{tag:x}.y",), port="80")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2\n", "F:2:2: not valid YAML:"),
        ("owner: a\nowner: b\n", "F:2:1: the key 'owner' is here twice; it stands in line 1 already"),
        ("consul:\n  wait: 1s\n  wait: 2s\n", "F:3:3: the key 'wait' is here twice; it stands in line 2 already"),
        ("- a\n", "F:1:1: must be a mapping (`key: value` lines), not a list"),
        ("just text\n", "F:1:1: must be a mapping (`key: value` lines), not text"),
        ("a: 1\n---\nb: 2\n", "F:2:1: not valid YAML: expected a single document"),
        ("a: &x [*x]\n", "F:1:4: an alias that contains itself"),
        ("? [a]\n: b\n", "F:1:3: a key must be text"),
        ("a: !!python/object:os.system {}\n", "F:1:1: unknown key 'a'"),
        ("owner: !!python/name:os.system ''\n", "not valid YAML: could not determine a constructor"),
        ("consul:\n  token: *hunter2\n", "F:2:10: not valid YAML: found undefined alias"),
        ("owner: 2026-13-45\n", f"F:1:8: '2026-13-45': {NO_DATE}; put it in quotes"),
        ("a: " + "[" * 20000 + "]" * 20000, "F:1:53: nested deeper than 50 levels"),
    ],
)
def test_a_file_that_is_no_settings_file(text: str, expected: str, tmp_path: Path) -> None:
    """YAML's own mistakes, and what YAML allows but we do not."""
    said = mistake(tmp_path, text)
    assert expected in said
    assert "hunter2" not in said


def test_aliases_cannot_make_a_small_file_huge(tmp_path: Path) -> None:
    """The classic of nine lines that mean a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 200000 values" in mistake(tmp_path, "\n".join(lines))


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    """Rules that resemble each other need not be written twice; what is in the rule itself wins."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules:\n- &base {services: [a], to: {namespace: one, port: 80}}\n- {<<: *base, services: [b]}\n")
    one, two = load({"--config": str(file)}, {}).core_rules()
    assert (one.services, two.services, two.to.namespace, two.to.port) == (("a",), ("b",), "one", 80)


@pytest.mark.parametrize("text", ["", "# nothing\n", "consul:\nrules:\n"])
def test_an_empty_file_says_nothing(text: str, tmp_path: Path) -> None:
    """Sections without content are as if they were not there."""
    file = tmp_path / "bridge.yaml"
    file.write_text(text)
    assert load({"--config": str(file)}, {}).effective() == load({}, {}).effective()


def test_an_empty_list_of_rules_selects_nothing(tmp_path: Path) -> None:
    """Said on purpose, it is something else than saying nothing."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules: []\n")
    settings = load({"--config": str(file)}, {})
    assert settings.core_rules() == ()
    assert "rules: []" in settings.selection()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not text."""
    with pytest.raises(ConfigurationError, match=r"nix\.yaml: cannot be read: No such file or directory"):
        load({"--config": str(tmp_path / "nix.yaml")}, {})
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load({}, {"BRIDGE_CONFIG": str(tmp_path)})
    binary = tmp_path / "binary"
    binary.write_bytes(b"owner: \xff\xfe\n")
    with pytest.raises(ConfigurationError, match="binary: not"):
        load({"--config": str(binary)}, {})
    control = tmp_path / "control"
    control.write_bytes(b"owner: a\x07b\n")
    with pytest.raises(ConfigurationError, match="control"):
        load({"--config": str(control)}, {})


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Who writes settings wants to fix them in one go."""
    text = "\n".join(["ownr: x", "policy: x", *[f"# {n}" for n in range(3, 10)], "adopt: x"]) + "\n"
    lines = mistake(tmp_path, text).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "10"]


def test_very_many_mistakes_are_cut(tmp_path: Path) -> None:
    """The first twenty say enough."""
    lines = mistake(tmp_path, "rules:\n" + "- 5\n" * 50).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more"


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({"--removal-grace-period": "30"}, {}, "--removal-grace-period: '30' has no unit"),
        ({}, {"BRIDGE_REMOVAL_GRACE_PERIOD": "30"}, "BRIDGE_REMOVAL_GRACE_PERIOD: '30' has no unit"),
        ({}, {"BRIDGE_GRACE": "3s"}, "BRIDGE_GRACE: no such variable; it is called BRIDGE_REMOVAL_GRACE_PERIOD now"),
        ({}, {"BRIDGE_RUN_INSTALLATION": "x"}, "BRIDGE_RUN_INSTALLATION: no such variable; it is called BRIDGE_RUN_IN"),
        ({}, {"BRIDGE_RETRY_CONSUL_CAP": "x"}, "BRIDGE_RETRY_CONSUL_CAP: no such variable; it is called BRIDGE_RETRY"),
        ({}, {"CONSUL_HTTP_ADDR": "a b"}, "CONSUL_HTTP_ADDR: 'a b' has a host name that cannot be"),
        ({"--name": "{x}"}, {}, "--name: '{x}' knows no {x}"),
        ({}, {"BRIDGE_NAMESPACE": "A"}, "BRIDGE_NAMESPACE: 'A' may have lower-case letters"),
        ({"--service": ["ok", ""]}, {}, "--service: '' must not be empty"),
        ({"--output-kind": "endpoint"}, {}, "--output-kind: 'endpoint' must be one of endpoints, endpointslices, both"),
    ],
)
def test_a_mistake_in_a_flag_or_variable_names_it(
    flags: dict[str, object], environ: dict[str, str], expected: str
) -> None:
    """No file, no line: the flag or the variable is the place."""
    with pytest.raises(ConfigurationError) as caught:
        load(flags, environ)
    assert str(caught.value).startswith(expected)


def test_a_bad_token_is_not_shown() -> None:
    """Neither in the message nor in its causes."""
    with pytest.raises(ConfigurationError) as caught:
        load({}, {"CONSUL_HTTP_TOKEN": "hush\nhush"})
    assert (
        str(caught.value) == "CONSUL_HTTP_TOKEN: a token has neither blanks nor line ends nor letters outside of ASCII"
    )
    assert caught.value.__cause__ is None


def test_a_value_that_is_long_or_has_control_characters_is_shown_escaped_and_cut() -> None:
    """What is quoted back reaches a terminal."""
    with pytest.raises(ConfigurationError) as caught:
        load({"--owner": "\x1b[31m" + "x" * 500}, {})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("250ms", 0.25), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    """As docs/reference.md writes them, and back."""
    assert parse_duration(text) == seconds
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 s", "5x", "1h 30m", "5s5", "\u0661s", "1e3s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"duration|unit"):
        parse_duration(text)
