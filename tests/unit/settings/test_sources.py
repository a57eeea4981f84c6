"""Where a setting's value comes from, and which source wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.config import RULE_FLAGS, Setting, catalogue, load, rule_env
from bridge.core.model import (
    Adopt,
    Amount,
    Bounds,
    Combine,
    Destination,
    Failover,
    InstanceRules,
    Output,
    Policy,
    Rule,
    Treatment,
)
from bridge.core.select import Only
from bridge.errors import ConfigurationError
from bridge.kube.members import ElectionConfig

# For every setting two values that are legal, differ from each other and from the default, as text.
EXAMPLES: dict[str, tuple[str, str]] = {
    "owner": ("team-a", "team-b"),
    "policy": ("upsert-only", "create-only"),
    "adopt": ("unowned", "consul-k8s"),
    "log.format": ("json", "console"),
    "log.level": ("debug", "error"),
    "consul.address": ("http://one:8500", "http://two:8500"),
    "consul.datacenter": ("dc1", "dc2"),
    "consul.token": ("token-one", "token-two"),
    "consul.token_file": ("/run/one", "/run/two"),
    "consul.tls": ("true", "false"),
    "consul.verify": ("false", "true"),
    "consul.auth_method": ("kubernetes", "jwt"),
    "consul.auth_token_file": ("/run/one", "/run/two"),
    "consul.http_auth": ("one:secret", "two:secret"),
    "consul.max_answer": ("64MiB", "1GiB"),
    "consul.ca_file": ("/one.pem", "/two.pem"),
    "consul.ca_path": ("/one", "/two"),
    "consul.client_cert": ("/one.pem", "/two.pem"),
    "consul.client_key": ("/one.key", "/two.key"),
    "consul.tls_server_name": ("one.example", "two.example"),
    "consul.datacenters": ("dc1", "dc2,dc3"),
    "consul.namespace": ("ns1", "ns2"),
    "consul.partition": ("p1", "p2"),
    "consul.wait": ("10s", "20s"),
    "consul.connect_timeout": ("1s", "2s"),
    "consul.timeout_margin": ("10s", "20s"),
    "consul.max_stale": ("10s", "20s"),
    "consul.connections": ("8", "9"),
    "kubernetes.kubeconfig": ("/one.conf", "/two.conf"),
    "kubernetes.context": ("one", "two"),
    "kubernetes.watch_namespaces": ("a", "b,c"),
    "kubernetes.nodes": ("a", "b,*"),
    "kubernetes.request_timeout": ("5s", "6s"),
    "kubernetes.connect_timeout": ("1s", "2s"),
    "kubernetes.max_answer": ("64MiB", "1GiB"),
    "kubernetes.writers": ("3", "4"),
    "dns.resolve": ("false", "true"),
    "dns.ttl": ("1m", "2m"),
    "dns.retry": ("2s", "3s"),
    "dns.max_concurrent": ("2", "3"),
    "dns.wait": ("2s", "3s"),
    "run.listen": (":9480", "[::1]:0"),
    "run.page": ("off", "127.0.0.1:9481"),
    "run.consul_ui": ("https://consul.example.com/ui", "http://127.0.0.1:8500/ui"),
    "run.resync": ("1m", "2m"),
    "run.removal_grace_period": ("1m", "250ms"),
    "run.leader_elect": ("true", "false"),
    "run.shards": ("2", "3"),
    "run.events": ("true", "false"),
    "run.instance_name": ("apps/one", "apps/two"),
    "run.lease_namespace": ("one", "two"),
    "run.lease_duration": ("10s", "1m"),
    "guard.removal_threshold": ("10", "20"),
    "guard.removal_minimum": ("1", "2"),
    "guard.panic_threshold": ("10", "0"),
    "guard.window": ("10s", "20s"),
    "guard.restore_hold": ("1m", "1h30m"),
    "guard.hold_release": ("1h", "2h"),
    "guard.allow_cidrs": ("10.0.0.0/8,fd00::/8", "10.1.0.0/16"),
    "guard.deny_cidrs": ("10.96.0.0/16", "10.97.0.0/16,10.244.0.0/16"),
    "guard.extra_deny_cidrs": ("10.96.0.0/16", "10.97.0.0/16,10.244.0.0/16"),
    "guard.namespaces": ("a", "b,team-*"),
    "guard.deny_namespaces": ("kube-system", "b,team-*"),
    "retry.attempts": ("2", "3"),
    "retry.consul.initial_interval": ("1s", "2s"),
    "retry.consul.max_interval": ("40s", "50s"),
    "retry.consul.multiplier": ("3", "4"),
    "retry.kubernetes.initial_interval": ("1s", "2s"),
    "retry.kubernetes.max_interval": ("40s", "50s"),
    "retry.kubernetes.multiplier": ("3", "4"),
    "retry.object.initial_interval": ("1s", "2s"),
    "retry.object.max_interval": ("40s", "50s"),
    "retry.object.multiplier": ("3", "4"),
    "retry.permanent.initial_interval": ("6s", "7s"),
    "retry.permanent.max_interval": ("6m", "7m"),
    "retry.permanent.multiplier": ("3", "4"),
    "sync.output": ("json", "yaml"),
    "sync.dry_run": ("true", "false"),
    "sync.exit_code": ("true", "false"),
    "sync.all": ("true", "false"),
    "sync.yes": ("true", "false"),
    "sync.watch": ("true", "false"),
    "sync.interval": ("1s", "3s"),
    "sync.offline": ("true", "false"),
    "sync.force": ("true", "false"),
}

# settings that are refused without their partner
PARTNERS = {
    "consul.client_cert": ("consul.client_key", "/k"),
    "consul.client_key": ("consul.client_cert", "/c"),
}

SETTINGS = {s.key: s for s in catalogue()}


def value(setting: Setting, text: str) -> Any:
    """An example as YAML and flags have it."""
    if setting.is_list:
        return text.split(",")
    if setting.is_switch:
        return text == "true"
    return text


def yaml_of(key: str, text: str) -> str:
    """A YAML file that sets one key (and its partner)."""
    entries = {key: text, **dict([PARTNERS[key]] if key in PARTNERS else [])}
    lines = []
    tree: dict[str, Any] = {}
    for path, entry in entries.items():
        at = tree
        *above, last = path.split(".")
        for part in above:
            at = at.setdefault(part, {})
        at[last] = entry

    def emit(at: dict[str, Any], indent: str) -> None:
        for name, below in at.items():
            if isinstance(below, dict):
                lines.append(f"{indent}{name}:")
                emit(below, indent + "  ")
            elif SETTINGS[key].is_list:
                lines.append(f"{indent}{name}: [{below}]")
            elif below in ("true", "false") or below.isdigit():
                lines.append(f"{indent}{name}: {below}")
            else:
                lines.append(f'{indent}{name}: "{below}"')

    emit(tree, "")
    return "\n".join(lines) + "\n"


def partner_env(key: str) -> dict[str, str]:
    """Environment that makes a setting acceptable which needs another one."""
    if key not in PARTNERS:
        return {}
    other, text = PARTNERS[key]
    return {SETTINGS[other].env: text}


def got(setting: Setting, flags: dict[str, Any], environ: dict[str, str]) -> str:
    """The value that comes out, as text; secrets in the clear."""
    settings = load(flags, environ)
    found: Any = settings
    for part in setting.path:
        found = getattr(found, part)
    return found.get_secret_value() if setting.secret else setting.text(found)


def test_every_setting_has_an_example() -> None:
    """A setting that is added without an entry above would go untested."""
    assert SETTINGS.keys() == EXAMPLES.keys()


def test_every_setting_has_a_description_that_ends_as_a_sentence() -> None:
    """The reference documentation is generated from them."""
    for setting in catalogue():
        assert setting.description.rstrip().endswith("."), setting.key


def test_environment_variables_are_unique_and_ours() -> None:
    """Two settings under one variable could not be told apart."""
    names = [s.env for s in catalogue()] + [rule_env(f) for f in RULE_FLAGS]
    assert len(names) == len(set(names))
    assert all(name.startswith("BRIDGE_") for name in names)


@pytest.mark.parametrize("key", EXAMPLES)
def test_every_setting_can_be_given_in_the_environment(key: str) -> None:
    """A BRIDGE_ variable reaches its setting."""
    setting = SETTINGS[key]
    assert got(setting, {}, {**partner_env(key), setting.env: EXAMPLES[key][0]}) == EXAMPLES[key][0]


@pytest.mark.parametrize("key", EXAMPLES)
def test_every_setting_can_be_given_in_the_file_and_the_environment_beats_it(key: str, tmp_path: Path) -> None:
    """A key of the YAML file reaches its setting; a BRIDGE_ variable is stronger."""
    setting, (one, two) = SETTINGS[key], EXAMPLES[key]
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml_of(key, one))
    assert got(setting, {"--config": str(file)}, {}) == one
    assert got(setting, {}, {"BRIDGE_CONFIG": str(file)}) == one
    assert got(setting, {"--config": str(file)}, {setting.env: two}) == two


@pytest.mark.parametrize("key", [k for k in EXAMPLES if SETTINGS[k].flag])
def test_a_flag_beats_everything(key: str, tmp_path: Path) -> None:
    """Flags are stronger than variables, Consul's own ones and the file."""
    setting, (one, two) = SETTINGS[key], EXAMPLES[key]
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml_of(key, one))
    environ = {setting.env: one, **dict.fromkeys(setting.also, one), "BRIDGE_CONFIG": str(file)}
    assert got(setting, {setting.flag: value(setting, two)}, environ) == two


@pytest.mark.parametrize(
    ("key", "variable"), [(s.key, variable) for s in catalogue() for variable in s.also], ids=lambda x: str(x)
)
def test_others_variables_work_between_our_own_and_the_file(key: str, variable: str, tmp_path: Path) -> None:
    """CONSUL_… and KUBECONFIG are read; BRIDGE_… is stronger; the file is weaker, and the replacement is reported."""
    setting, (one, two) = SETTINGS[key], EXAMPLES[key]
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml_of(key, two))
    assert got(setting, {}, {**partner_env(key), variable: one}) == one
    assert got(setting, {}, {**partner_env(key), variable: one, setting.env: two}) == two
    settings = load({"--config": str(file)}, {variable: one})
    assert [n for n in settings.notes if n.startswith(f"{variable} replaces {key} of {file}:")] != []
    assert got(setting, {"--config": str(file)}, {variable: one}) == one


def test_no_note_when_a_variable_repeats_what_the_file_says(tmp_path: Path) -> None:
    """Only a difference is worth a warning."""
    file = tmp_path / "bridge.yaml"
    file.write_text("consul: {address: 'http://c:8500'}\n")
    assert load({"--config": str(file)}, {"CONSUL_HTTP_ADDR": "http://c:8500"}).notes == ()


def test_an_empty_variable_is_no_variable() -> None:
    """As in shells and pod templates, `X=` means that X is not set."""
    environ = {s.env: "" for s in catalogue()} | {v: "" for s in catalogue() for v in s.also}
    assert load({}, environ).effective() == load({}, {}).effective()


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("T", True), ("0", False), ("False", False)])
def test_consuls_switches_are_read_as_consuls_tools_read_them(text: str, expected: bool) -> None:
    """Go's ParseBool."""
    assert load({}, {"CONSUL_HTTP_SSL_VERIFY": text}).consul.verify is expected


def test_a_switch_of_consul_that_is_no_switch_is_refused() -> None:
    """Consul's own tools fail as well."""
    with pytest.raises(ConfigurationError, match=r"^CONSUL_HTTP_SSL: 'yes' must be true or false$"):
        load({}, {"CONSUL_HTTP_SSL": "yes"})


@pytest.mark.parametrize(
    ("environ", "token", "token_file"),
    [
        ({"CONSUL_HTTP_TOKEN": "aaaa", "CONSUL_HTTP_TOKEN_FILE": "/f"}, "", "/f"),
        ({"BRIDGE_TOKEN": "bbbb", "CONSUL_HTTP_TOKEN_FILE": "/f"}, "bbbb", ""),
        ({"BRIDGE_TOKEN_FILE": "/g", "CONSUL_HTTP_TOKEN": "aaaa"}, "", "/g"),
        ({"BRIDGE_CONSUL_AUTH_METHOD": "k8s", "CONSUL_HTTP_TOKEN": "aaaa", "BRIDGE_TOKEN_FILE": "/g"}, "", ""),
    ],
)
def test_a_token_and_a_token_file_mean_the_same_so_the_stronger_source_wins(
    environ: dict[str, str], token: str, token_file: str
) -> None:
    """Within one source the file wins, as in Consul's own tools."""
    consul = load({}, environ).consul
    assert (consul.token.get_secret_value(), consul.token_file) == (token, token_file)


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {}, "http://127.0.0.1:8500"),
        ({}, {"CONSUL_HTTP_ADDR": "consul:8500"}, "http://consul:8500"),
        ({}, {"CONSUL_HTTP_ADDR": "consul:8501", "CONSUL_HTTP_SSL": "true"}, "https://consul:8501"),
        ({}, {"CONSUL_HTTP_ADDR": "http://consul:8501", "CONSUL_HTTP_SSL": "1"}, "https://consul:8501"),
        ({"--consul-address": "http://consul:8500"}, {"CONSUL_HTTP_SSL": "1"}, "http://consul:8500"),
        ({"--consul-address": "consul:8500"}, {"CONSUL_HTTP_SSL": "1"}, "https://consul:8500"),
        ({}, {"CONSUL_HTTP_ADDR": "https://consul"}, "https://consul:443"),
        ({}, {"CONSUL_HTTP_ADDR": "consul"}, "http://consul:80"),
        ({}, {"CONSUL_HTTP_ADDR": "[::1]:8500"}, "http://[::1]:8500"),
        ({}, {"CONSUL_HTTP_ADDR": "http://h:8500/"}, "http://h:8500"),
        ({}, {"CONSUL_HTTP_ADDR": "https://h/consul/"}, "https://h:443/consul"),
        ({}, {"CONSUL_HTTP_ADDR": "unix:///run/consul/http.sock"}, "unix:///run/consul/http.sock"),
    ],
)
def test_consuls_address_is_understood_as_in_its_own_tools(
    flags: dict[str, Any], environ: dict[str, str], expected: str
) -> None:
    """Scheme, port and CONSUL_HTTP_SSL together make the URL."""
    assert load(flags, environ).consul_url() == expected
    assert load(flags, environ).consul_config().address == expected


def test_what_leads_to_consul_comes_from_the_variables_of_its_own_tools() -> None:
    """CONSUL_HTTP_AUTH, CONSUL_CAPATH and everybody's proxy variables reach the transport, and no password the log."""
    environ = {
        "CONSUL_HTTP_AUTH": "user:geheim1", "CONSUL_CAPATH": "/ca", "HTTPS_PROXY": "http://p:geheim2@proxy:1",
        "no_proxy": "x", "BRIDGE_CONSUL_MAX_ANSWER": "64MiB",
    }  # fmt: skip
    settings = load({}, environ)
    config = settings.consul_config()
    assert (config.http_auth, config.ca_path, config.max_answer_bytes) == ("user:geheim1", "/ca", 64 << 20)
    assert config.proxies == (("HTTPS_PROXY", "http://p:geheim2@proxy:1"), ("no_proxy", "x"))
    assert "geheim" not in f"{config!r} {settings.effective()}"
    assert {"geheim1", "geheim2"} <= set(settings.secrets())
    assert settings.effective()["consul.max_answer"] == "64MiB"


def test_an_auth_method_brings_the_pods_token_along() -> None:
    """The default file is where Kubernetes mounts it; without a method it is not looked at."""
    config = load({}, {"BRIDGE_CONSUL_AUTH_METHOD": "k8s"}).consul_config()
    assert (config.auth_method, config.auth_token_file) == (
        "k8s",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    )
    assert load({}, {}).consul_config().auth_token_file == ""


def test_without_file_flags_and_variables_one_rule_selects_everything() -> None:
    """The simplest call mirrors every service."""
    (rule,) = load({}, {}).core_rules("storage")
    assert (rule.services, rule.tags, rule.filter, rule.to.namespace, rule.to.name) == (
        (),
        (),
        "",
        "storage",
        "{service}",
    )
    assert rule.to.output is Output.BOTH


def test_the_command_that_releases_a_hold_has_this_installations_flags() -> None:
    """Those that another command needs to see and own the same, quoted; variables are there anyway."""
    flags = {
        "--tag": ["s3", "a b"], "--filter": 'Service.Meta.env == "prod"', "--service": ["radosgw*"],
        "--namespace": "storage", "--owner": "x", "--listen": "127.0.0.1:1", "--removal-grace-period": "5s",
        "--watch-namespace": ["*"],
    }  # fmt: skip
    expected = (
        "bridge sync --tag s3 --tag 'a b' --filter 'Service.Meta.env == \"prod\"' --watch-namespace '*' --owner x"
    )
    loaded = load(flags, {})
    assert (loaded.command, loaded.run_options().guard.command) == (expected, expected)
    assert load({}, {"BRIDGE_OWNER": "x"}).sync_options().guard.command == "bridge sync"


def test_the_command_names_the_file_that_the_command_line_names(tmp_path: Path) -> None:
    """One that a variable names is found by the same variable."""
    file = tmp_path / "my bridge.yaml"
    file.write_text("rules: []\n")
    assert load({"--config": str(file)}, {}).command == f"bridge sync --config '{file}'"
    assert load({}, {"BRIDGE_CONFIG": str(file)}).command == "bridge sync"


def test_beside_the_rules_of_a_file_service_and_namespace_narrow_what_is_forced(tmp_path: Path) -> None:
    """Without --force, or with a flag that says how something is mirrored, it stays a mistake."""
    file = tmp_path / "bridge.yaml"
    file.write_text("rules: [{services: [web]}]\n")
    flags = {"--config": str(file), "--service": ["radosgw"], "--namespace": "storage"}
    forced = load({**flags, "--force": True}, {})
    assert [rule.services for rule in forced.core_rules()] == [("web",)]
    assert forced.sync_options().only == Only(("radosgw",), "storage")
    for more in ({}, {"--force": True, "--tag": ["s3"]}):
        with pytest.raises(ConfigurationError, match="has rules as well"):
            load({**flags, **more}, {})


def test_a_template_of_a_namespace_narrows_nothing() -> None:
    """It is the rule's, which such flags make where no file has rules."""
    flags = {"--service": ["web"], "--namespace": "{datacenter}", "--force": True}
    assert load(flags, {}).sync_options().only == Only(("web",))


def test_rule_flags_make_one_rule() -> None:
    """--service, --tag, --filter, --namespace, --name and --output-kind together are a rule."""
    flags = {
        "--service": ["radosgw*", "db"],
        "--tag": ["s3"],
        "--filter": 'Service.Meta.env == "prod"',
        "--namespace": "storage",
        "--name": "{service}-{datacenter}",
        "--output-kind": "both",
    }
    (rule,) = load(flags, {}).core_rules()
    assert rule.services == ("radosgw*", "db")
    assert rule.tags == ("s3",)
    assert rule.filter == 'Service.Meta.env == "prod"'
    assert (rule.to.namespace, rule.to.name, rule.to.output) == ("storage", "{service}-{datacenter}", Output.BOTH)


def test_rule_variables_make_one_rule_and_a_flag_beats_its_variable() -> None:
    """The variables are BRIDGE_SERVICE and so on; lists are separated by commas."""
    environ = {"BRIDGE_SERVICE": "a, b*", "BRIDGE_TAG": "x,y", "BRIDGE_NAMESPACE": "one", "BRIDGE_OUTPUT_KIND": "both"}
    (rule,) = load({"--namespace": "two"}, environ).core_rules()
    assert (rule.services, rule.tags, rule.to.namespace, rule.to.output) == (
        ("a", "b*"),
        ("x", "y"),
        "two",
        Output.BOTH,
    )


@pytest.mark.parametrize("given", [{"flags": {"--service": ["a"]}}, {"environ": {"BRIDGE_NAMESPACE": "x"}}])
def test_rule_flags_and_rules_in_the_file_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    """No one could know which was meant; the message names both places."""
    file = tmp_path / "bridge.yaml"
    file.write_text("owner: x\nrules:\n  - services: [a]\n")
    with pytest.raises(ConfigurationError) as caught:
        load({"--config": str(file), **given.get("flags", {})}, given.get("environ", {}))
    assert f"{file}:3:3" in str(caught.value)
    assert ("--service" if "flags" in given else "BRIDGE_NAMESPACE") in str(caught.value)


def test_a_file_without_rules_goes_with_rule_flags(tmp_path: Path) -> None:
    """Connection settings in the file, the selection on the command line."""
    file = tmp_path / "bridge.yaml"
    file.write_text("owner: team-a\n")
    settings = load({"--config": str(file), "--service": ["a"]}, {})
    assert settings.owner == "team-a"
    assert settings.core_rules()[0].services == ("a",)


def test_a_mistyped_variable_is_noted_and_the_links_of_a_service_named_bridge_are_not() -> None:
    """Kubernetes sets BRIDGE_PORT and the like in pods beside a Service of that name; they are not mistakes."""
    links = {"BRIDGE_SERVICE_HOST": "10.0.0.1", "BRIDGE_PORT": "tcp://10.0.0.1:80", "BRIDGE_PORT_80_TCP_ADDR": "x"}
    assert load({}, links).notes == ()
    (note,) = load({}, {"BRIDGE_CONECTIONS": "3"}).notes
    assert note == "BRIDGE_CONECTIONS: no such setting (did you mean BRIDGE_CONNECTIONS?); it is ignored"


def test_the_tree_is_frozen() -> None:
    """Settings are values."""
    settings: Any = load({}, {})
    with pytest.raises(Exception, match="frozen"):
        settings.owner = "x"
    with pytest.raises(Exception, match="frozen"):
        settings.consul.address = "x"


def test_effective_settings_mask_secrets_and_name_everything() -> None:
    """What `bridge run` logs once at its start."""
    settings = load({}, {"CONSUL_HTTP_TOKEN": "very-secret", "BRIDGE_REMOVAL_GRACE_PERIOD": "90s"})
    effective = settings.effective()
    assert effective.keys() == SETTINGS.keys() | {"annotated", "rules"}
    assert effective["consul.token"] == "***"
    assert effective["run.removal_grace_period"] == "1m30s"
    assert "very-secret" not in repr(settings) + str(effective)
    assert settings.secrets() == ("very-secret",)
    assert settings.source("run.removal_grace_period") == "BRIDGE_REMOVAL_GRACE_PERIOD"


def test_plain_dataclasses_for_the_other_rooms() -> None:
    """Every value reaches the room that needs it."""
    environ = {SETTINGS[k].env: one for k, (one, _) in EXAMPLES.items()}
    environ.pop("BRIDGE_TOKEN_FILE")
    environ.pop("BRIDGE_CONSUL_AUTH_METHOD")
    settings = load({}, environ)
    consul, kube, guard = settings.consul_config(), settings.kube_config(), settings.guard_settings()
    assert kube.max_answer_bytes == 64 << 20
    assert (consul.address, consul.token, consul.datacenter) == ("https://one:8500", "token-one", "dc1")
    assert (consul.ca_file, consul.client_cert, consul.client_key) == ("/one.pem", "/one.pem", "/one.key")
    assert (consul.tls_server_name, consul.verify) == ("one.example", False)
    assert (consul.namespace, consul.partition, consul.datacenters) == ("ns1", "p1", ("dc1",))
    assert (consul.wait_seconds, consul.connect_timeout_seconds, consul.timeout_margin_seconds) == (10, 1, 10)
    assert (consul.max_stale_seconds, consul.connections) == (10, 8)
    assert (kube.kubeconfig, kube.context, kube.namespaces) == ("/one.conf", "one", ("a",))
    assert (kube.request_timeout_seconds, kube.connect_timeout_seconds) == (5, 1)
    assert kube.connections > settings.kubernetes.writers
    assert (guard.removal_percent, guard.removal_minimum, guard.panic_percent) == (10, 1, 10)
    assert (guard.window_seconds, guard.restore_hold_seconds, guard.hold_release_seconds) == (10, 60, 3600)
    run, sync = settings.run_options(), settings.sync_options()
    assert (run.owner, run.policy, run.adopt) == ("team-a", Policy.UPSERT_ONLY, Adopt.UNOWNED)
    assert (run.removal_grace_seconds, run.resync_seconds, run.writers, run.guard) == (60, 60, 3, guard)
    assert (run.consul_retry.initial_seconds, run.consul_retry.max_seconds, run.consul_retry.multiplier) == (1, 40, 3)
    assert (run.kube_retry.initial_seconds, run.object_retry.max_seconds, run.permanent_retry.max_seconds) == (
        1,
        40,
        360,
    )
    assert run.consul_retry.attempts == 0
    assert run.events is True
    assert run.election == ElectionConfig(
        owner="team-a", installation="apps/one", namespace="one", shards=2, duration_seconds=10
    )
    assert (sync.owner, sync.policy, sync.adopt, sync.dry_run, sync.force) == (
        "team-a", Policy.UPSERT_ONLY, Adopt.UNOWNED, True, True,
    )  # fmt: skip
    assert (sync.writers, sync.retry.attempts, sync.guard) == (3, 2, guard)
    assert sync.leases is True


def test_a_star_means_all_namespaces() -> None:
    """Beside other names it makes them superfluous."""
    assert load({"--watch-namespace": ["a", "*"]}, {}).kube_config().namespaces == ("*",)


@pytest.mark.parametrize(
    ("flags", "shards"), [({}, None), ({"--leader-elect": True}, 1), ({"--shards": "2"}, 2), ({"--shards": "1"}, None)]
)
def test_more_than_one_shard_means_an_election(flags: dict[str, Any], shards: int | None) -> None:
    """Otherwise one replica is alone, unless a setting says that it is not."""
    election = load(flags, {}).run_options().election
    assert (None if election is None else election.shards) == shards


@pytest.mark.parametrize("given", ["0", "65", "many"])
def test_a_number_of_shards_has_bounds(given: str) -> None:
    """Each costs a Lease that is renewed all the time."""
    with pytest.raises(ConfigurationError, match="--shards"):
        load({"--shards": given}, {})


def test_every_key_of_a_rule_reaches_the_core(tmp_path: Path) -> None:
    """What a rule says is what the core decides by: no key is read and then forgotten."""
    file = tmp_path / "bridge.yaml"
    file.write_text(
        """
rules:
- name: all
  services: [a]
  tags: [t]
  meta: {m: v}
  filter: Service.Port == 1
  continue: true
  datacenters: [d]
  namespace: n
  partition: p
  peer: e
  to:
    namespace: ns
    name: x-{service}
    type: Headless
    output: both
    port: 1
    port_name: pn
    protocol: UDP
    app_protocol: http
    labels: {l: v}
    annotations: {a: v}
    labels_from: {lf: 'meta:k'}
    annotations_from: {af: tags}
    max_endpoints_per_slice: 7
  instances:
    warning: omit
    critical: omit
    maintenance: omit
    address: lan
    allow_cidrs: [10.0.0.0/8]
    deny_cidrs: [10.1.0.0/16]
    zone_meta: z
    settle: 5s
    min_ready: 50%
"""
    )
    (rule,) = load({"--config": str(file)}, {}).core_rules()
    omit = Treatment.OMIT
    assert rule == Rule(
        name="all",
        services=("a",),
        tags=("t",),
        meta=(("m", "v"),),
        filter="Service.Port == 1",
        datacenters=("d",),
        namespace="n",
        partition="p",
        peer="e",
        to=Destination(
            namespace="ns",
            name="x-{service}",
            headless=True,
            output=Output.BOTH,
            port=1,
            port_name="pn",
            protocol="UDP",
            app_protocol="http",
            labels=(("l", "v"),),
            annotations=(("a", "v"),),
            labels_from=(("lf", "meta:k"),),
            annotations_from=(("af", "tags"),),
            max_endpoints_per_slice=7,
        ),
        instances=InstanceRules(
            warning=omit,
            critical=omit,
            maintenance=omit,
            address="lan",
            allow_cidrs=("10.0.0.0/8",),
            deny_cidrs=("10.1.0.0/16",),
            bounds=Bounds(reserved_namespaces=("kube-*", "default")),
            zone_meta="z",
            settle_seconds=5.0,
            min_ready=Amount(50, percent=True),
        ),
        unlisted=True,
        continues=True,
        place=f"{file}:3:3",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", Failover()),
        ("failover_below: 3\n  failback_after: 5m", Failover(below=3, failback_seconds=300.0)),
        ("failover_below: 30%", Failover(below=30, percent=True)),
        ("failover_below: '30 %'", Failover(below=30, percent=True)),
        (
            "failover_when: unreachable\n  unreachable_after: 10s",
            Failover(when_unreachable=True, unreachable_seconds=10.0),
        ),
    ],
)
def test_what_a_rule_says_about_failing_over_reaches_the_core(tmp_path: Path, given: str, expected: Failover) -> None:
    """Each key, and the default of each."""
    file = tmp_path / "bridge.yaml"
    file.write_text(f"rules:\n- datacenters: [a, b]\n  combine: failover\n  {given}\n")
    (rule,) = load({"--config": str(file)}, {}).core_rules()
    assert (rule.combine, rule.datacenters, rule.failover) == (Combine.FAILOVER, ("a", "b"), expected)


@pytest.mark.parametrize(
    ("installation", "owner"),
    [
        ("storage/consul-endpoints-bridge", "storage.consul-endpoints-bridge"),
        ("a/b", "a.b"),
        ("/", "default"),
        (f"{'n' * 40}/{'m' * 40}", f"{'n' * 40}.{'m' * 13}-471ced9d"),
    ],
)
def test_an_installation_is_an_owner_of_its_own(installation: str, owner: str) -> None:
    """Two of them in one cluster would delete each other's objects under one id."""
    assert load({}, {"BRIDGE_RUN_INSTANCE_NAME": installation}).owner == owner


def test_an_owner_that_is_given_beats_the_installations(tmp_path: Path) -> None:
    """From whichever source; without an installation it is `default`."""
    file = tmp_path / "bridge.yaml"
    file.write_text("owner: mine\n")
    installed = {"BRIDGE_RUN_INSTANCE_NAME": "storage/bridge"}
    assert load({"--config": str(file)}, installed).owner == "mine"
    assert load({}, {**installed, "BRIDGE_OWNER": "env"}).owner == "env"
    assert load({"--owner": "flag"}, installed).owner == "flag"
    assert load({}, {}).owner == "default"
