"""manifests/chart says the same as manifests/base with its components, and a real API server takes it from helm.

What the base promises (rights, restricted pods, probes) is proved in test_manifests.py; equality carries it over.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

import bridge
from bridge.config import catalogue, owner_of
from tests.support.docs import chart
from tests.support.lab import Lab, await_rights, manifests
from tests.support.lab.build import binary
from tests.support.program import bridge as bridge_command
from tests.support.raw import RawConsul, RawKube

pytestmark = pytest.mark.lab

Json = dict[str, Any]

CHART = manifests.MANIFESTS / "chart"
COPIED = ("alerts.yaml", "dashboard.json")

VALUES: dict[str, Json] = {
    "cronjob": {"cronJob": {"enabled": True}},
    "all-namespaces": {"allNamespaces": True},
    "endpoints-only": {"output": "endpoints"},
    "endpointslices-only": {"output": "endpointslices"},
    "nodes": {"nodes": True},
    "node-addresses": {"nodeAddresses": True},
    "namespace-labels": {"namespaceLabels": True},
    "consul-acl": {"consul": {"tokenSecret": {"name": f"{manifests.NAME}-acl"}}},
    "consul-login": {"consul": {"login": {"authMethod": manifests.NAME}}},
    "consul-ca": {"consul": {"caConfigMap": {"name": f"{manifests.NAME}-ca"}}},
    "consul-tls": {"consul": {"tls": {"secret": f"{manifests.NAME}-tls"}}},
    "shards": {"shards": 6, "replicaCount": 3},
    "monitoring": {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboard")},
    "admission": {"admission": {"enabled": True}},
    "http-routes": {"httpRoutes": True},
}
"""The values that say what a component says. `namespace` has none: `helm install --create-namespace` makes it."""

CHOICES = [
    (),
    *((name,) for name in VALUES),
    ("all-namespaces", "nodes", "consul-acl", "consul-tls", "shards", "monitoring", "admission", "http-routes"),
    ("all-namespaces", "endpointslices-only", "consul-acl"),
    ("cronjob", "all-namespaces", "endpoints-only", "nodes", "namespace-labels", "consul-acl", "consul-tls"),
    ("cronjob", "endpointslices-only"),
    ("cronjob", "consul-login", "consul-tls"),
    ("cronjob", "consul-ca"),
]


def helm(folder: Path, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it, with everything that it keeps in `folder`; no cluster unless one is named."""
    homes = {f"HELM_{kind}_HOME": str(folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **homes, "KUBECONFIG": str(kubeconfig or folder / "none")}
    return subprocess.run(
        [str(binary("helm")), *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def values_file(folder: Path, values: Json) -> Path:
    """As a user's own values.yaml."""
    file = folder / f"values-{uuid4().hex[:6]}.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML, and says `y` so that every reader takes it for text
    return file


def rendered(
    folder: Path, values: Json, namespace: str = "elsewhere", *more: str, release: str = manifests.NAME
) -> list[Json]:
    """What the chart renders to: by default as a release of the chart's own name, which gives kustomize's names."""
    file = values_file(folder, values)
    done = helm(folder, "template", release, str(CHART), "--namespace", namespace, "--values", str(file), *more)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def is_hook(found: Json) -> bool:
    """Whether helm keeps it out of the release (the pod of `helm test`)."""
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def chosen(components: Sequence[str], **further: Any) -> Json:
    """The values for these components together."""
    whole: Json = copy.deepcopy(further)
    for name in components:
        for key, value in VALUES[name].items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    return whole


def plain(objects: Sequence[Json]) -> dict[tuple[str, str], Json]:
    """By kind and name, without what the two tools add of their own, and without an order where none is meant."""
    objects = [found for found in objects if not is_hook(found)]
    text = json.dumps(objects)
    # The chart knows the namespace, so its cluster-wide names have it in them, and its policy says it.
    text = text.replace(f"elsewhere-{manifests.NAME}", manifests.NAME)
    text = text.replace(
        f"request.userInfo.username == 'system:serviceaccount:elsewhere:{manifests.NAME}'",
        "request.userInfo.username.startsWith('system:serviceaccount:') && "
        f"request.userInfo.username.endsWith(':{manifests.NAME}')",
    )
    for found in objects:
        name = found["metadata"]["name"]
        if found["kind"] == "ConfigMap" and (short := re.sub(r"-[a-z0-9]{10}$", "", name)) != name:
            text = text.replace(json.dumps(name), json.dumps(short))  # kustomize's hash, with what refers to it
    result = {}
    for found in json.loads(text):
        metadata = found["metadata"]
        if found["kind"].startswith("ValidatingAdmissionPolicy"):
            metadata.pop("namespace", None)  # kustomize does not know that they have none, and kubectl ignores it
        keep = {k: v for k, v in metadata.pop("labels", {}).items() if "/" not in k}
        metadata |= {"labels": keep} if keep else {}
        if found["kind"] == "ConfigMap":
            found["data"] = {k: yaml.safe_load(v) for k, v in found["data"].items()}
        if found["kind"] in ("Deployment", "CronJob"):
            template = manifests.pod_template([found])
            (container,) = template["spec"]["containers"]
            for part in (container["env"], container["volumeMounts"], template["spec"]["volumes"]):
                part.sort(key=lambda entry: str(entry["name"]))
        assert (found["kind"], metadata["name"]) not in result
        result[found["kind"], metadata["name"]] = found
    return result


@pytest.mark.parametrize("components", CHOICES, ids=lambda c: "+".join(c) or "base")
def test_the_chart_and_kustomize_say_the_same(components: Sequence[str], tmp_path: Path) -> None:
    """For the default values, for each component, and for many together."""
    output = next((VALUES[c]["output"] for c in components if "output" in VALUES[c]), "both")
    config = {"rules": [{"services": ["web"], "to": {"output": output, "labels": {"a": "b"}}}]} if components else None
    rules = json.dumps(config) if config else None
    ours = plain(rendered(tmp_path, chosen(components, **({"config": config} if config else {}))))
    theirs = plain(manifests.overlay(tmp_path / "overlay", "elsewhere", components, rules=rules))
    assert sorted(ours) == sorted(theirs)
    assert ours == theirs


@pytest.mark.parametrize("name", COPIED)
def test_the_charts_copies_are_copies(name: str) -> None:
    """A chart cannot read files beside itself. (Fix it with `cp`.)"""
    original = manifests.MANIFESTS / "components/monitoring" / name
    assert (CHART / "files" / name).read_text() == original.read_text()


def test_its_versions_are_the_bridges() -> None:
    """Of the chart, and of the image that it runs."""
    found = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (found["version"], found["appVersion"]) == (bridge.__version__, bridge.__version__)


NAMED = {"name": "x", "value": "y"}

Wrong = tuple[Json, str]
"""Values, and words of the messages about them."""

WRONG_BY_SCHEMA: list[Wrong] = [
    ({"replica": 2}, "'replica' not allowed"),
    ({"replicaCount": "two"}, "'/replicaCount': got string, want integer"),
    ({"shards": 0}, "'/shards'"),
    ({"output": "slices"}, "'/output'"),
    ({"consul": {"adress": "x"}}, "'/consul': additional properties 'adress' not allowed"),
    ({"consul": {"tls": None}}, "'/consul': missing property 'tls'"),
    ({"image": {"digest": "sha256:12"}}, "'/image/digest'"),
    ({"env": {"BRIDGE_OWNER": {"name": "x"}}}, "'/env/BRIDGE_OWNER'"),
    ({"extraEnv": [{"value": "x"}]}, "'/extraEnv/0': missing property 'name'"),
    ({"podLabels": {"number": 1}}, "'/podLabels/number': got number, want string"),
    ({"config": {"rules": {"services": ["web"]}}}, "'/config/rules': got object, want null or array"),
    ({"config": {"rule": []}}, "'/config': additional properties 'rule' not allowed"),
    ({"config": {"run": {"graze": "1s"}}}, "'/config/run': additional properties 'graze' not allowed"),
    ({"config": {"rules": [{"services": ["web"], "to": {"nmae": "x"}}]}},
         "'/config/rules/0/to': additional properties 'nmae' not allowed"),
    ({"config": {"rules": [{"services": "web"}]}}, "'/config/rules/0/services': got string, want"),
    ({"config": {"rules": [{"to": {"type": "Loadbalancer"}}]}}, "'/config/rules/0/to/type': value must be one of"),
    ({"config": {"rules": [{"to": {"port": 65536}}]}}, "'/config/rules/0/to/port': maximum: got 65,536"),
    ({"config": {"run": {"removal_grace_period": "30"}}}, "removal_grace_period': '30' does not match pattern"),
    ({"config": {"run": {"removal_grace_period": 30}}}, "'/config/run/removal_grace_period': got number, want string"),
    ({"config": {"guard": {"removal_threshold": 150}}}, "'/config/guard/removal_threshold': maximum: got 150"),
    ({"config": {"guard": {"allow_cidrs": ["vms"]}}}, "'/config/guard/allow_cidrs/0': 'vms' does not match"),
    ({"config": {"consul": {"max_answer": "32MB"}}}, "'/config/consul/max_answer': '32MB' does not match"),
    ({"fullnameOverride": "Not A Name"}, "'/fullnameOverride'"),
]  # fmt: skip
WRONG_TOGETHER: list[Wrong] = [
    ({"consul": {"address": "http://user:password@consul:8500"}}, "consul.address: must be [http[s]://]HOST"),
    ({"consul": {"address": "unix://relative"}}, "consul.address: must be [http[s]://]HOST"),
    ({"consul": {"address": "unix:///s", "tls": {"secret": "x"}}}, "consul.address: a Unix socket"),
    ({"consul": {"tokenSecret": {"name": "x"}, "login": {"authMethod": "y"}}}, "both give a token; set one"),
    ({"consul": {"caSecret": {"name": "x"}, "caConfigMap": {"name": "y"}}}, "both give a CA; set one"),
    ({"env": {"bridge owner": "x"}}, 'env: "bridge owner" is no name of a variable'),
    ({"env": {"BRIDGE_CONFIG": "x"}}, "env: BRIDGE_CONFIG is set by the chart, which needs it so; use config or"),
    ({"extraEnv": [{"name": "POD_NAME"}]}, "env: POD_NAME is set by the chart"),
    ({"env": {"BRIDGE_LISTEN": "0.0.0.0:80"}}, "env: BRIDGE_LISTEN must end with :9480"),
    ({"env": {"x": "1"}, "extraEnv": [NAMED]}, "extraEnv: x is there twice (env counts as well); leave one"),
    ({"extraEnv": [NAMED, NAMED]}, "extraEnv: x is there twice"),
    ({"existingConfigMap": "x", "config": {"rules": []}}, "config: is not read where existingConfigMap is set"),
    ({"extraVolumes": [{"name": "config"}]}, "extraVolumes: the name config is taken"),
    ({"extraVolumeMounts": [{"name": "x", "mountPath": "/etc/consul-endpoints-bridge"}]},
         "extraVolumeMounts: something is mounted at /etc/consul-endpoints-bridge already"),
    ({"extraContainers": [{"name": "bridge"}]}, "extraContainers: the name bridge is taken"),
    ({"extraContainers": [{"name": "x"}], "initContainers": [{"name": "x"}]}, "initContainers: the name x is taken"),
    ({"commonLabels": {"app.kubernetes.io/name": "x"}},
         "commonLabels: the chart sets app.kubernetes.io/name itself; take it out (nameOverride changes it)"),
    ({"podLabels": {"app.kubernetes.io/instance": "x"}}, "podLabels: the chart sets app.kubernetes.io/instance"),
    ({"config": {"rules": None}, "extraArgs": []}, "config.rules: says no service, and the bridge would not start"),
    ({"podMonitor": {"enabled": True}, "cronJob": {"enabled": True}, "extraContainers": []},
         "podMonitor.enabled: finds nothing to scrape where cronJob.enabled is true"),
    ({"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}, "would be scraped twice"),
    ({"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}, "serviceMonitor.enabled: finds no Serv"),
    ({"networkPolicy": {"egress": {"enabled": True}}}, "networkPolicy.egress.rules: is empty"),
    ({"output": "endpoints", "config": {"rules": [{"to": {"output": "endpoints"}}, {"services": ["x"]}]}},
         "config.rules[1].to.output: is both, for which the value output: endpoints grants no rights; set output to"),
]  # fmt: skip
"""What the schema cannot say: each is a sentence of the templates."""


def put_together(cases: Sequence[Wrong]) -> list[tuple[Json, list[str]]]:
    """As few sets of values as hold all cases, because each costs a start of helm, which says all that is wrong."""
    found: list[tuple[Json, list[str]]] = []
    for values, words in cases:
        for number, (before, said) in enumerate(found):
            if (whole := merged(before, values)) is not None:
                found[number] = (whole, [*said, words])
                break
        else:
            found.append((values, [words]))
    return found


def merged(one: Json, other: Json) -> Json | None:
    """Both; None where both say something of one value."""
    whole = copy.deepcopy(one)
    for key, value in other.items():
        if key in whole and not (isinstance(value, dict) and isinstance(whole[key], dict)):
            return None
        together = merged(whole[key], value) if key in whole else copy.deepcopy(value)
        if together is None:
            return None
        whole[key] = together
    return whole


@pytest.mark.parametrize(
    ("values", "words"), [*put_together(WRONG_BY_SCHEMA), *put_together(WRONG_TOGETHER)], ids=lambda v: str(len(v))
)
def test_wrong_values_get_clear_errors(values: Json, words: list[str], tmp_path: Path) -> None:
    """All at once, before anything reaches a cluster."""
    done = helm(tmp_path, "template", "bridge", str(CHART), "--values", str(values_file(tmp_path, values)))
    missing = [text for text in words if text not in done.stderr]
    assert (done.returncode, missing) == (1, []), done.stderr


def test_all_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    """One sentence a line, without the password."""
    values = {"consul": {"address": "http://user:hunter2@x"}, "extraEnv": [NAMED, NAMED], "podLabels": {
        "app.kubernetes.io/name": "x"}}  # fmt: skip
    done = helm(tmp_path, "template", "bridge", str(CHART), "--values", str(values_file(tmp_path, values)))
    said = [line.split(":")[0] for line in done.stderr.splitlines() if re.match(r"(consul|extraEnv|podLabels)", line)]
    assert (said, "hunter2" in done.stderr) == (["consul.address", "podLabels", "extraEnv"], False)


# --------------------------------------------------------------------------- every value, seen

LABEL = {"team": "storage"}
CONTAINER = {"image": "example/x:1", "securityContext": {"allowPrivilegeEscalation": False}}
PEER = [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
EGRESS = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 8501}]}]
SPREAD = [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
HTTP_HEADER = {"httpGet": {"httpHeaders": [{"name": "a", "value": "b"}]}}
DIGEST = f"sha256:{'0' * 64}"
CONFIG = {"owner": "blue", "guard": {"removal_minimum": 1_000_000}, "rules": [{"services": ["web"]}]}
ALERT = "ConsulBridgeAbsent"

RELEASES: dict[str, Json] = {
    "plain": {},
    "daemon": {
        "image": {"repository": "registry.example/bridge", "tag": "9.9", "digest": DIGEST, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "fullnameOverride": "bridge-blue",
        "commonLabels": {"cost": "7"}, "commonAnnotations": {"owner": "sre"},
        "podLabels": {"mesh": "off"}, "podAnnotations": {"inject": "false"},
        "config": CONFIG,
        "allNamespaces": True, "nodes": True, "nodeAddresses": True, "namespaceLabels": True,
        "httpRoutes": True, "admission": {"enabled": True, "networks": ["10.0.0.0/8"]},
        "consul": {
            "address": "https://consul:8501", "tokenSecret": {"name": "acl", "key": "bearer"},
            "caConfigMap": {"name": "ca", "key": "root.pem"},
            "tls": {"secret": "tls", "serverName": "server.dc1.consul"},
        },
        "replicaCount": 3, "shards": 6, "strategy": {"rollingUpdate": {"maxSurge": 2}},
        "resources": {"limits": {"memory": "1Gi"}},
        "env": {"BRIDGE_RESYNC": "9m", "BRIDGE_LOG_FORMAT": "console", "BRIDGE_GUARD_REMOVAL_MINIMUM": 10_000_000,
                "BRIDGE_DNS_RESOLVE": False},
        "extraEnv": [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                     {"name": "CONSUL_HTTP_ADDR", "value": "http://$(HOST_IP):8500"}],
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
        "extraArgs": ["--log-level", "debug"],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "extraContainers": [{"name": "beside", **CONTAINER}], "initContainers": [{"name": "before", **CONTAINER}],
        "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
        "livenessProbe": HTTP_HEADER, "readinessProbe": HTTP_HEADER, "startupProbe": HTTP_HEADER,
        "terminationGracePeriodSeconds": 45,
        "nodeSelector": {"pool": "infra"}, "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAffinity": {}}, "topologySpreadConstraints": SPREAD,
        "priorityClassName": "system-cluster-critical", "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]}, "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["consul"]}],
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "podSecurityContext": {"runAsUser": 7}, "securityContext": {"privileged": False},
        "serviceAccount": {"annotations": {"role": "arn"}},
        "service": {"type": "NodePort", "port": 80, "labels": LABEL, "annotations": {"scrape": "true"}},
        "networkPolicy": {"ingressFrom": PEER, "egress": {"enabled": True, "rules": EGRESS}},
        "podMonitor": {"enabled": True, "labels": LABEL, "interval": "1m", "scrapeTimeout": "9s",
                       "namespace": "default"},
        "prometheusRule": {"enabled": True, "labels": LABEL, "namespace": "default",
                           "runbookUrl": "https://example.com/runbooks"},
        "dashboard": {"enabled": True, "labels": LABEL, "annotations": {"grafana_folder": "Consul"},
                      "namespace": "default"},
    },
    "other": {
        "nameOverride": "mirror", "namespaceOverride": "default", "existingConfigMap": "mine", "output": "endpoints",
        "consul": {"login": {"authMethod": "kubernetes", "audience": "vault"},
                   "caSecret": {"name": "ca", "key": "root.pem"},
                   "tls": {"secret": "tls", "clientCertificate": False}},
        "podDisruptionBudget": {"minAvailable": 2},
        "serviceAccount": {"create": False, "name": "mine"}, "rbac": {"create": False},
        "podSecurityContext": None, "securityContext": None,
        "networkPolicy": {"enabled": False},
        "serviceMonitor": {"enabled": True, "labels": LABEL, "interval": "1m", "scrapeTimeout": "9s",
                           "namespace": "kube-public"},
    },
    "cron": {"cronJob": {"enabled": True, "schedule": "7 * * * *"}, "extraArgs": ["--log-level", "debug"],
             "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}, "extraContainers": [{"name": "beside", **CONTAINER}],
             "networkPolicy": {"egress": {"enabled": True, "rules": EGRESS}}},
    "little": {"podDisruptionBudget": {"enabled": False}, "service": {"enabled": False},
               "strategy": {"type": "Recreate"}, "livenessProbe": None, "topologySpreadConstraints": []},
    "narrow": {"output": "endpoints", "config": {"rules": [{"to": {"output": "endpoints"}}]}},
}  # fmt: skip
"""One start of helm each; together they set every value."""


@dataclass(frozen=True, slots=True)
class Release:
    """What one of RELEASES renders to, to look something up in."""

    objects: list[Json]

    def of(self, kind: str, name: str = "") -> Json:
        """The one object of a kind whose name ends so; {} when there is none."""
        found = [o for o in self.objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
        assert len(found) < 2, [o["metadata"]["name"] for o in found]
        return found[0] if found else {}

    def at(self, kind: str, *path: str | int, name: str = "") -> Any:
        """The value at a path of such an object; None when there is none."""
        found: Any = self.of(kind, name)
        for step in path:
            if isinstance(step, int):
                found = found[step] if isinstance(found, list) and len(found) > step else None
            else:
                found = found.get(step) if isinstance(found, dict) else None
        return found

    @property
    def template(self) -> Json:
        """Of the pods."""
        return manifests.pod_template([o for o in self.objects if o["kind"] in ("Deployment", "CronJob")])

    @property
    def spec(self) -> Json:
        """Of the pods."""
        spec: Json = self.template["spec"]
        return spec

    @property
    def container(self) -> Json:
        """The bridge's."""
        container: Json = self.spec["containers"][0]
        return container

    @property
    def env(self) -> dict[str, Any]:
        """Its variables, each once, by name."""
        names = [entry["name"] for entry in self.container["env"]]
        assert len(names) == len(set(names)), names
        return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in self.container["env"]}

    def volume(self, name: str) -> Any:
        """One of the pod's."""
        return next((volume for volume in self.spec["volumes"] if volume["name"] == name), None)

    def kinds(self) -> set[str]:
        """Of the release's objects, without the pod of `helm test`."""
        return {o["kind"] for o in self.objects if not is_hook(o)}

    def namespaces(self) -> set[str]:
        """Those of all objects that have one."""
        return {o["metadata"]["namespace"] for o in self.objects if "namespace" in o["metadata"]}


Look = Callable[[Release], Any]


def spec(name: str) -> Look:
    """A field of the pod."""
    return lambda r: r.spec.get(name)


def container(*path: str) -> Look:
    """A field of the container."""

    def look(release: Release) -> Any:
        found: Any = release.container
        for step in path:
            found = (found or {}).get(step)
        return found

    return look


def variable(name: str) -> Look:
    """A variable of the container."""
    return lambda r: r.env.get(name)


def at(kind: str, *path: str | int, name: str = "") -> Look:
    """A field of an object."""
    return lambda r: r.at(kind, *path, name=name)


def everywhere(what: str, key: str) -> Look:
    """The values that a label or annotation has on all objects, and on the pods if it is a label."""

    def look(release: Release) -> Any:
        found = {o["metadata"].get(what, {}).get(key) for o in release.objects}
        return found | ({release.template["metadata"]["labels"].get(key)} if what == "labels" else set())

    return look


def roles(release: Release) -> set[str]:
    """What roles there are beside that for Leases."""
    return {f"{o['kind']} {o['metadata']['name']}" for o in release.objects
            if o["kind"].endswith("Role") and not o["metadata"]["name"].endswith("-leases")}  # fmt: skip


def monitor(kind: str, endpoints: str) -> dict[str, tuple[Look, Any]]:
    """What the values of a monitor do, by their names."""
    return {
        "enabled": (lambda r: kind in r.kinds(), True),
        "labels": (at(kind, "metadata", "labels", "team"), "storage"),
        "interval": (at(kind, "spec", endpoints, 0, "interval"), "1m"),
        "scrapeTimeout": (at(kind, "spec", endpoints, 0, "scrapeTimeout"), "9s"),
    }


TLS_ENV = ("CONSUL_HTTP_SSL", "CONSUL_CACERT", "CONSUL_CLIENT_CERT")
CA_ITEMS = [{"key": "root.pem", "path": "ca.crt"}]

EFFECTS: dict[str, tuple[str, Look, Any]] = {
    "image.repository": ("daemon", container("image"), f"registry.example/bridge:9.9@{DIGEST}"),
    "image.tag": ("daemon", container("image"), f"registry.example/bridge:9.9@{DIGEST}"),
    "image.digest": ("daemon", container("image"), f"registry.example/bridge:9.9@{DIGEST}"),
    "image.pullPolicy": ("daemon", container("imagePullPolicy"), "Always"),
    "imagePullSecrets": ("daemon", spec("imagePullSecrets"), [{"name": "registry"}]),
    "nameOverride": ("other", at("Deployment", "spec", "selector", "matchLabels", "app.kubernetes.io/name"), "mirror"),
    "fullnameOverride": ("daemon", at("Deployment", "metadata", "name"), "bridge-blue"),
    "namespaceOverride": ("other", Release.namespaces, {"default", "kube-public"}),
    "commonLabels": ("daemon", everywhere("labels", "cost"), {"7"}),
    "commonAnnotations": ("daemon", everywhere("annotations", "owner"), {"sre"}),
    "podLabels": ("daemon", lambda r: r.template["metadata"]["labels"].get("mesh"), "off"),
    "podAnnotations": ("daemon", lambda r: r.template["metadata"]["annotations"].get("inject"), "false"),
    "config": ("daemon", lambda r: yaml.safe_load(manifests.configuration([*without_hooks(r)])), CONFIG),
    "existingConfigMap": ("other", lambda r: r.volume("config")["configMap"]["name"], "mine"),
    "output": ("narrow", at("Role", "rules", 2, "verbs", name=manifests.NAME), ["list", "watch"]),
    "allNamespaces": ("daemon", lambda r: "ClusterRole elsewhere-bridge-blue" in roles(r), True),
    "nodes": ("daemon", lambda r: "ClusterRole elsewhere-bridge-blue-nodes" in roles(r), True),
    "nodeAddresses": ("daemon", lambda r: "ClusterRole elsewhere-bridge-blue-node-addresses" in roles(r), True),
    "namespaceLabels": ("daemon", lambda r: "ClusterRole elsewhere-bridge-blue-namespace-labels" in roles(r), True),
    "httpRoutes": ("daemon", at("ClusterRole", "rules", 4, "resources", name="elsewhere-bridge-blue"), ["httproutes"]),
    "admission.enabled": ("daemon", lambda r: "ValidatingAdmissionPolicy" in r.kinds(), True),
    "admission.networks": (
        "daemon", at("ValidatingAdmissionPolicy", "spec", "variables", 0, "expression"), "['10.0.0.0/8']"),
    "consul.address": ("daemon", lambda r: connection(r), "https://consul:8501"),
    "consul.tokenSecret.name": ("daemon", variable("CONSUL_HTTP_TOKEN_FILE"), "/etc/consul-acl/token"),
    "consul.tokenSecret.key": ("daemon", lambda r: r.volume("consul-acl"), {"name": "consul-acl", "secret": {
        "secretName": "acl", "defaultMode": 0o440, "items": [{"key": "bearer", "path": "token"}]}}),
    "consul.login.authMethod": ("other", variable("BRIDGE_CONSUL_AUTH_METHOD"), "kubernetes"),
    "consul.login.audience": (
        "other", lambda r: (r.volume("consul-login") or {}).get("projected", {}).get("sources"),
        [{"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}}]),
    "consul.caSecret.name": (
        "other", lambda r: [r.env.get(n) for n in TLS_ENV], ["true", "/etc/consul-ca/ca.crt", None]),
    "consul.caSecret.key": ("other", lambda r: r.volume("consul-ca"), {"name": "consul-ca", "secret": {
        "secretName": "ca", "defaultMode": 0o440, "items": CA_ITEMS}}),
    "consul.caConfigMap.name": (
        "daemon", lambda r: [r.env.get(n) for n in TLS_ENV],
        ["true", "/etc/consul-ca/ca.crt", "/etc/consul-tls/tls.crt"]),
    "consul.caConfigMap.key": ("daemon", lambda r: r.volume("consul-ca"), {"name": "consul-ca", "configMap": {
        "name": "ca", "items": CA_ITEMS}}),
    "consul.tls.secret": ("daemon", lambda r: r.volume("consul-tls"), {"name": "consul-tls", "secret": {
        "secretName": "tls", "defaultMode": 0o440}}),
    "consul.tls.clientCertificate": ("other", lambda r: (r.volume("consul-tls") is None, "CONSUL_CLIENT_KEY" in r.env),
                                     (False, False)),
    "consul.tls.serverName": ("daemon", variable("CONSUL_TLS_SERVER_NAME"), "server.dc1.consul"),
    "replicaCount": ("daemon", at("Deployment", "spec", "replicas"), 3),
    "shards": ("daemon", variable("BRIDGE_SHARDS"), "6"),
    "cronJob.enabled": ("cron", lambda r: r.kinds() >= {"CronJob"} and "Deployment" not in r.kinds(), True),
    "cronJob.schedule": ("cron", at("CronJob", "spec", "schedule"), "7 * * * *"),
    "strategy": (
        "daemon", at("Deployment", "spec", "strategy"), {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}}),
    "resources": ("daemon", container("resources"), {
        "requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}),
    "env": ("daemon", lambda r: [r.env.get(name) for name in RELEASES["daemon"]["env"]],
            ["9m", "console", "10000000", "false"]),
    "extraEnv": ("daemon", lambda r: list(r.env.items())[-2:], [
        ("HOST_IP", {"fieldRef": {"fieldPath": "status.hostIP"}}), ("CONSUL_HTTP_ADDR", "http://$(HOST_IP):8500")]),
    "extraEnvFrom": ("daemon", lambda r: r.container["envFrom"][1:], [{"secretRef": {"name": "more"}}]),
    "extraArgs": ("daemon", container("args"), ["run", "--log-level", "debug"]),
    "extraVolumes": ("daemon", lambda r: r.volume("scratch"), {"name": "scratch", "emptyDir": {}}),
    "extraVolumeMounts": (
        "daemon", lambda r: r.container["volumeMounts"][-1], {"name": "scratch", "mountPath": "/scratch"}),
    "extraContainers": ("daemon", lambda r: [c["name"] for c in r.spec["containers"]], ["bridge", "beside"]),
    "initContainers": ("daemon", lambda r: [c["name"] for c in r.spec.get("initContainers", [])], ["before"]),
    "lifecycle": ("daemon", container("lifecycle"), {"preStop": {"sleep": {"seconds": 3}}}),
    **{name: ("daemon", container(name, "httpGet", "httpHeaders"), HTTP_HEADER["httpGet"]["httpHeaders"])
       for name in ("livenessProbe", "readinessProbe", "startupProbe")},
    "terminationGracePeriodSeconds": ("daemon", spec("terminationGracePeriodSeconds"), 45),
    **{name: ("daemon", spec(name), RELEASES["daemon"][name]) for name in (
        "nodeSelector", "tolerations", "affinity", "priorityClassName", "dnsPolicy", "dnsConfig", "hostAliases")},
    "topologySpreadConstraints": ("daemon", lambda r: [
        {key: value for key, value in entry.items() if key != "labelSelector"}
        for entry in r.spec["topologySpreadConstraints"]], SPREAD),
    "podDisruptionBudget.enabled": ("little", lambda r: "PodDisruptionBudget" in r.kinds(), False),
    "podDisruptionBudget.minAvailable": ("other", at("PodDisruptionBudget", "spec", "minAvailable"), 2),
    "podDisruptionBudget.maxUnavailable": ("daemon", lambda r: [
        r.at("PodDisruptionBudget", "spec", key) for key in ("minAvailable", "maxUnavailable")], [None, "50%"]),
    "podSecurityContext": ("daemon", lambda r: r.spec["securityContext"]["runAsUser"], 7),
    "securityContext": ("daemon", lambda r: r.container["securityContext"].get("privileged"), False),
    "serviceAccount.create": ("other", lambda r: "ServiceAccount" in r.kinds(), False),
    "serviceAccount.name": ("other", spec("serviceAccountName"), "mine"),
    "serviceAccount.annotations": ("daemon", at("ServiceAccount", "metadata", "annotations", "role"), "arn"),
    "rbac.create": ("other", lambda r: [kind for kind in r.kinds() if "Role" in kind], []),
    "service.enabled": ("little", lambda r: "Service" in r.kinds(), False),
    "service.type": ("daemon", at("Service", "spec", "type"), "NodePort"),
    "service.port": ("daemon", at("Service", "spec", "ports", 0), {"name": "http", "port": 80, "targetPort": "http"}),
    "service.labels": ("daemon", at("Service", "metadata", "labels", "team"), "storage"),
    "service.annotations": ("daemon", at("Service", "metadata", "annotations", "scrape"), "true"),
    "networkPolicy.enabled": ("other", lambda r: "NetworkPolicy" in r.kinds(), False),
    "networkPolicy.ingressFrom": ("daemon", at("NetworkPolicy", "spec", "ingress", 0, "from"), PEER),
    "networkPolicy.egress.enabled": ("daemon", at("NetworkPolicy", "spec", "policyTypes"), ["Ingress", "Egress"]),
    "networkPolicy.egress.rules": ("daemon", lambda r: (r.at("NetworkPolicy", "spec", "egress") or [])[1:], EGRESS),
    **{f"podMonitor.{key}": ("daemon", *effect) for key, effect in
       monitor("PodMonitor", "podMetricsEndpoints").items()},
    "podMonitor.namespace": ("daemon", lambda r: [r.at("PodMonitor", *path) for path in (
        ("metadata", "namespace"), ("spec", "namespaceSelector", "matchNames"))], ["default", ["elsewhere"]]),
    **{f"serviceMonitor.{key}": ("other", *effect) for key, effect in monitor("ServiceMonitor", "endpoints").items()},
    "serviceMonitor.namespace": ("other", lambda r: [r.at("ServiceMonitor", *path) for path in (
        ("metadata", "namespace"), ("spec", "namespaceSelector", "matchNames"))], ["kube-public", ["default"]]),
    "prometheusRule.enabled": ("daemon", lambda r: "PrometheusRule" in r.kinds(), True),
    "prometheusRule.labels": ("daemon", at("PrometheusRule", "metadata", "labels", "team"), "storage"),
    "prometheusRule.namespace": ("daemon", at("PrometheusRule", "metadata", "namespace"), "default"),
    "prometheusRule.runbookUrl": (
        "daemon", at("PrometheusRule", "spec", "groups", 0, "rules", 0, "annotations", "runbook_url"),
        f"https://example.com/runbooks#{ALERT.lower()}"),
    "dashboard.enabled": ("daemon", lambda r: bool(r.of("ConfigMap", "-dashboard")), True),
    "dashboard.labels": ("daemon", lambda r: [r.at("ConfigMap", "metadata", "labels", key, name="-dashboard")
                                              for key in ("grafana_dashboard", "team")], ["1", "storage"]),
    "dashboard.annotations": (
        "daemon", at("ConfigMap", "metadata", "annotations", "grafana_folder", name="-dashboard"), "Consul"),
    "dashboard.namespace": ("daemon", at("ConfigMap", "metadata", "namespace", name="-dashboard"), "default"),
}  # fmt: skip
"""Value: the release that sets it, where it is seen, and what is seen there. A plain release shows another thing."""


def without_hooks(release: Release) -> list[Json]:
    """What `manifests` knows how to read: one container in each pod."""
    return [found for found in release.objects if not is_hook(found)]


def connection(release: Release) -> str:
    """Consul's address, from the ConfigMap that the container reads."""
    (name,) = (source["configMapRef"]["name"] for source in release.container["envFrom"] if "configMapRef" in source)
    address: str = release.at("ConfigMap", "data", "CONSUL_HTTP_ADDR", name=name)
    return address


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """RELEASES, rendered once."""
    folder = tmp_path_factory.mktemp("releases")
    return {name: Release(rendered(folder, values)) for name, values in RELEASES.items()}


@pytest.mark.parametrize("name", RELEASES)
def test_helm_finds_no_fault_with_it(name: str, tmp_path: Path) -> None:
    """Warnings count as faults."""
    done = helm(tmp_path, "lint", str(CHART), "--strict", "--values", str(values_file(tmp_path, RELEASES[name])))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_value_has_a_test_that_sees_its_effect() -> None:
    """One that is added to values.yaml needs one."""
    assert {value.path for value in chart.values()} == set(EFFECTS)


@pytest.mark.parametrize("value", EFFECTS)
def test_a_value_does_what_it_is_for(value: str, releases: dict[str, Release]) -> None:
    """It is seen where it should be, and not without it."""
    name, look, expected = EFFECTS[value]
    found, otherwise = look(releases[name]), look(releases["plain"])
    assert found == expected
    assert otherwise != expected


def test_what_several_values_do_together(releases: dict[str, Release]) -> None:
    """Where one value has to give way to another, or to what Kubernetes takes."""
    daemon, cron, other, little = (releases[name] for name in ("daemon", "cron", "other", "little"))
    # a CronJob's pod ends: no container beside it, no probes, nothing comes in
    assert [c["name"] for c in cron.spec["containers"]] == ["bridge"]
    assert cron.container["args"] == ["sync", "--yes", "--log-level", "debug"]
    assert cron.container["lifecycle"] == {"preStop": {"sleep": {"seconds": 3}}}
    assert cron.at("NetworkPolicy", "spec", "policyTypes") == ["Ingress", "Egress"]
    assert cron.at("NetworkPolicy", "spec", "ingress") is None
    # no sidecar of a mesh: it would not end with the CronJob's
    for release in (daemon, cron):
        metadata = release.template["metadata"]
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["linkerd.io/inject"] == "disabled"
    # what no setting asks for any more is not there
    assert little.at("Deployment", "spec", "strategy") == {"type": "Recreate"}
    assert {"livenessProbe", "readinessProbe"} & little.container.keys() == {"readinessProbe"}
    assert "topologySpreadConstraints" not in little.spec
    assert ("securityContext" in other.spec, "securityContext" in other.container) == (False, False)
    assert [o["metadata"]["name"] for o in other.objects if "bridge.yaml" in o.get("data", {})] == []
    # labels of a user's go on pods and objects, and into no selector
    selector = {"app.kubernetes.io/name": manifests.NAME, "app.kubernetes.io/instance": manifests.NAME}
    assert daemon.at("Deployment", "spec", "selector", "matchLabels") == selector
    assert daemon.at("Service", "spec", "selector") == selector
    for kind, path in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        assert daemon.at(kind, "spec", path) == {"matchLabels": selector}
    (spread,) = daemon.spec["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": selector}
    assert daemon.template["metadata"]["labels"] == {
        **selector, "cost": "7", "mesh": "off", "sidecar.istio.io/inject": "false",
    }  # fmt: skip
    # the pod of `helm test` is like all others, and none of what finds those finds it
    for release in (daemon, cron, other):
        pod = next(found for found in release.objects if is_hook(found))
        assert pod["metadata"]["labels"]["app.kubernetes.io/name"].endswith("-check")
        assert pod["spec"]["containers"][0]["args"] == ["check"]
        for same in ("env", "envFrom", "volumeMounts", "image"):
            assert pod["spec"]["containers"][0][same] == release.container[same]
        assert pod["spec"]["volumes"] == release.spec["volumes"]
        assert pod["spec"]["serviceAccountName"] == release.spec["serviceAccountName"]


def test_openshift_gives_the_ids(tmp_path: Path) -> None:
    """The chart's own are left out there, one of a user's stays, and so does everything else."""
    openshift = ("--api-versions", "security.openshift.io/v1")
    found = Release(rendered(tmp_path, {"podSecurityContext": {"runAsGroup": 7}}, "elsewhere", *openshift))
    seccomp = {"type": "RuntimeDefault"}
    assert found.spec["securityContext"] == {"runAsNonRoot": True, "runAsGroup": 7, "seccompProfile": seccomp}
    one = Release(rendered(tmp_path, {"podSecurityContext": {"runAsUser": None}}))
    assert one.spec["securityContext"].keys() == {"runAsNonRoot", "runAsGroup", "fsGroup", "seccompProfile"}


def test_the_settings_of_a_release_are_understood(releases: dict[str, Release]) -> None:
    """Every variable that the chart itself sets is one of the bridge's."""
    known = {name for setting in catalogue() for name in (setting.env, *setting.also)}
    known |= {"BRIDGE_CONFIG", "HOST_IP", *manifests.OF_THE_POD}
    assert {name for release in releases.values() for name in release.env} - known == set()


LONG = "x" * 53
CUT = f"{LONG[:36]}-{hashlib.sha256(f'{LONG}-{manifests.NAME}'.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("release", "name"),
    [("bridge", f"bridge-{manifests.NAME}"), (manifests.NAME, manifests.NAME), (LONG, CUT)],
    ids=["short", "the chart's", "long"],
)
def test_names_and_owner_follow_the_release(release: str, name: str, tmp_path: Path) -> None:
    """Long ones are cut with a hash, so that two stay two; the owner id in the notes is the bridge's own."""
    namespace = "n" * 40
    done = helm(tmp_path, "install", release, str(CHART), "--namespace", namespace, "--dry-run=client")
    assert done.returncode == 0, done.stderr
    assert f"name: {name}\n" in done.stdout
    assert f"bridge purge --owner {owner_of(f'{namespace}/{name}')} --namespace {namespace}\n" in done.stdout


def notes(folder: Path, values: Json, namespace: str = "storage") -> str:
    """What `helm install` prints for a user."""
    file = values_file(folder, values)
    done = helm(folder, "install", "blue", str(CHART), "--namespace", namespace, "--values", str(file),
                "--dry-run=client")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def test_the_notes_have_the_commands_of_this_release(tmp_path: Path) -> None:
    """And say which values still lead nowhere."""
    name = f"blue-{manifests.NAME}"
    plain = notes(tmp_path, {})
    doubted = re.findall(r"^  - ([\w.\[\]]+): ", plain, re.MULTILINE)
    assert doubted == ["image.repository", "consul.address", "config.rules"]
    commands = re.findall(r"^    (.*)$", plain, re.MULTILINE)
    assert commands == [
        f"kubectl --namespace storage rollout status deployment/{name} --timeout=2m",
        f"kubectl --namespace storage exec deployment/{name} -- bridge check",
        f"kubectl --namespace storage exec deployment/{name} -- bridge status",
        f"kubectl --namespace storage port-forward deployment/{name} 9480",
        "helm test blue --namespace storage --logs",
        f"kubectl get services,endpointslices --namespace storage -l consul-bridge/owner=storage.{name}",
        "helm uninstall blue --namespace storage",
        f"bridge purge --owner storage.{name} --namespace storage",
        f"kubectl --namespace storage delete lease -l consul-bridge/owner=storage.{name}",
    ]
    mine: Json = {
        "image": {"repository": "registry.example/bridge"}, "allNamespaces": True, "serviceAccount": {"name": "mine"},
        "extraEnv": [{"name": "CONSUL_HTTP_ADDR", "value": "http://x:8500"}], "config": {"rules": []},
    }  # fmt: skip
    said = notes(tmp_path, mine)
    assert "  - " not in said
    assert "bridge purge --owner storage.mine --watch-namespace '*'\n" in said
    doubts: Json = {
        **mine, "allNamespaces": False, "shards": 3, "replicaCount": 1, "rbac": {"create": False},
        "env": {"BRIDGE_OWNER": "blue"}, "config": {"rules": [{"to": {"namespace": "web"}}]},
    }  # fmt: skip
    said = notes(tmp_path, doubts)
    doubted = re.findall(r"^  - ([\w.\[\]]+): ", said, re.MULTILINE)
    assert doubted == ["config.rules[0].to.namespace", "shards", "rbac.create"]
    assert "bridge purge --owner blue --namespace storage\n" in said
    said = notes(tmp_path, {"existingConfigMap": "rules", "cronJob": {"enabled": True}})
    assert "If the ConfigMap rules has `owner`, that is the owner id" in said
    assert f"kubectl --namespace storage create job --from=cronjob/{name} {name}-now\n" in said
    assert "rollout status" not in said


def test_a_change_of_the_rules_rolls_the_pods_and_nothing_else_does(tmp_path: Path) -> None:
    """By the names of the ConfigMaps, which carry a hash of what is in them: what old pods read stays as it was."""

    def pods(values: Json) -> tuple[Json, set[tuple[str, str]]]:
        objects = [found for found in rendered(tmp_path, values) if not is_hook(found)]
        needed = manifests.needed(objects)
        assert needed == {("ConfigMap", o["metadata"]["name"]) for o in objects if o["kind"] == "ConfigMap"}
        return manifests.pod_template(objects), needed

    plainly, needed = pods({})
    assert pods({"replicaCount": 5}) == (plainly, needed)
    for values in ({"config": {"rules": [{"services": ["web"]}]}}, {"consul": {"address": "http://other:8500"}}):
        template, others = pods(values)
        assert template != plainly
        assert len(others - needed) == 1


@pytest.mark.parametrize(("version", "there"), [("1.26.0", False), ("1.27.0", True)])
def test_an_older_api_server_gets_no_field_that_it_does_not_know(version: str, there: bool, tmp_path: Path) -> None:
    """Helm refuses unknown fields: the budget is without its policy for unhealthy pods then."""
    done = helm(tmp_path, "template", "bridge", str(CHART), "--kube-version", version)
    assert done.returncode == 0, done.stderr
    budget = manifests.of_kind([found for found in yaml.safe_load_all(done.stdout) if found], "PodDisruptionBudget")
    assert ("unhealthyPodEvictionPolicy" in budget["spec"]) == there


@pytest.fixture(scope="module")
def monitoring(lab: Lab) -> Iterator[None]:
    """The API server knows the kinds of the value `monitoring`."""
    with lab.raw_kube() as kube, manifests.monitoring_kinds(kube):
        yield


@pytest.mark.usefixtures("monitoring")
@pytest.mark.parametrize("name", RELEASES)
def test_the_api_server_accepts_it(name: str, lab: Lab, kube: RawKube, namespace: str, tmp_path: Path) -> None:
    """Every object, with every value set, by server-side apply without an effect: no unknown field, no list with one
    entry twice. (The ServiceAccount has to be there before a pod.)"""
    objects = rendered(tmp_path, RELEASES[name], namespace)
    pod = next(found for found in objects if is_hook(found))
    accounts = f"/api/v1/namespaces/{pod['metadata']['namespace']}/serviceaccounts"
    account = pod["spec"]["serviceAccountName"]
    kube.json("POST", accounts, {"metadata": {"name": account}})
    try:
        done = subprocess.run(
            [str(binary("kubectl")), "--kubeconfig", str(lab.kubeconfig), "apply", "--server-side",
             "--force-conflicts", "--dry-run=server", "-f", "-"],
            input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        kube.delete(f"{accounts}/{account}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("serverside-applied (server dry run)") == len(objects)


def test_helm_installs_upgrades_and_uninstalls_it(lab: Lab, kube: RawKube, namespace: str, tmp_path: Path) -> None:
    """Two releases in one namespace, with the default names; nothing is left of them."""

    def run(*arguments: str) -> None:
        done = helm(tmp_path, *arguments, "--namespace", namespace, kubeconfig=lab.kubeconfig)
        assert done.returncode == 0, done.stderr

    def deployments() -> dict[str, int]:
        items = kube.json("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]
        return {item["metadata"]["name"]: item["spec"]["replicas"] for item in items}

    one, two = f"bridge-{manifests.NAME}", f"blue-{manifests.NAME}"
    run("install", "bridge", str(CHART), "--set", "nodes=true")
    run("install", "blue", str(CHART), "--set", "nodes=true")
    assert deployments() == {one: 2, two: 2}
    run("upgrade", "bridge", str(CHART), "--set", "nodes=true", "--set", "replicaCount=3", "--set", "commonLabels.a=b")
    assert deployments() == {one: 3, two: 2}  # labels of a user's change no selector, which an upgrade could not
    run("uninstall", "bridge")
    run("uninstall", "blue")
    left = {
        f"{kind}/{item['metadata']['name']}"
        for root in ("/api/v1", "/apis/apps/v1", "/apis/rbac.authorization.k8s.io/v1", "/apis/policy/v1")
        for kind in ("configmaps", "services", "serviceaccounts", "deployments", "roles", "poddisruptionbudgets")
        for item in (kube.get(f"{root}/namespaces/{namespace}/{kind}") or {"items": []})["items"]
    }
    assert left - {"configmaps/kube-root-ca.crt", "serviceaccounts/default"} == set()


def test_the_commands_of_a_release_run_with_its_own_rights(
    lab: Lab, kube: RawKube, consul: RawConsul, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """`helm test`'s pod says that all is well, and where Consul is not, that it is not; so do `bridge status` and
    `explain` where `kubectl exec` would run them. The kubelet's part is played here: the command of the pod's container
    runs as its ServiceAccount, with its variables and files."""
    consul.register(f"{prefix}web", f"{prefix}vm", "10.9.2.1", 8080)
    config = {"rules": [{"services": [f"{prefix}*"]}]}

    in_namespace = ("--namespace", namespace)

    def released(address: str) -> tuple[dict[str, str], list[str]]:
        """The release with Consul there: the variables of `helm test`'s pod, and its command."""
        file = values_file(tmp_path, {"consul": {"address": address}, "config": config})
        for arguments in (("upgrade", "--install", manifests.NAME, str(CHART), "--values", str(file)),
                          ("get", "hooks", manifests.NAME), ("get", "manifest", manifests.NAME)):  # fmt: skip
            done = helm(tmp_path, *arguments, *in_namespace, kubeconfig=lab.kubeconfig)
            assert done.returncode == 0, done.stderr
            shown[arguments[1]] = done.stdout
        (pod,) = yaml.safe_load_all(shown["hooks"])
        objects = [found for found in yaml.safe_load_all(shown["manifest"]) if found["kind"] in ("ConfigMap", "Role")]
        as_owner = {"kind": "Deployment", "metadata": pod["metadata"], "spec": {"template": pod}}
        user = f"system:serviceaccount:{namespace}:{pod['spec']['serviceAccountName']}"
        await_rights(kube, user, namespace, manifests.granted(objects))
        server, ca = manifests.cluster_of(lab.kubeconfig)
        account = manifests.kubeconfig_with(
            tmp_path / "account.yaml", server, ca, manifests.token(kube, namespace), namespace
        )
        settings_file = tmp_path / "bridge.yaml"
        settings_file.write_text(manifests.configuration([as_owner, *objects]))
        env = {name: os.environ[name] for name in ("PATH", "HOME")} | manifests.environment([as_owner, *objects])
        return env | {"BRIDGE_CONFIG": str(settings_file), "KUBECONFIG": str(account)}, pod["spec"]["containers"][0][
            "args"
        ]

    shown: dict[str, str] = {}
    try:
        env, test = released(lab.consul.address)
        checked = bridge_command(*test, env=env)
        assert checked.status == 0, checked.stdout
        for command in (("status",), ("explain", f"{prefix}web")):
            said = bridge_command(*command, env=env)
            assert (said.status, f"{prefix}web" in said.stdout) == (0, True), said
        env, test = released("http://127.0.0.1:9")
        checked = bridge_command(*test, env=env)
        assert (checked.status, "127.0.0.1:9" in checked.stdout) == (1, True), checked
    finally:
        helm(tmp_path, "uninstall", manifests.NAME, *in_namespace, kubeconfig=lab.kubeconfig)


def test_an_upgrade_to_bad_rules_leaves_the_old_replicas_what_they_read(
    lab: Lab, kube: RawKube, namespace: str, tmp_path: Path
) -> None:
    """As long as one is wanted. The ReplicaSets are what the Deployment's controller, which is not here, would make."""
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    sets = f"/apis/apps/v1/namespaces/{namespace}/replicasets"

    def release(verb: str, services: list[str]) -> set[str]:
        """Install or upgrade; what the Deployment's pods read."""
        file = values_file(tmp_path, {"config": {"rules": [{"services": services}]}})
        done = helm(tmp_path, verb, manifests.NAME, str(CHART), "--namespace", namespace, "--values", str(file),
                    kubeconfig=lab.kubeconfig)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return {name for _, name in manifests.needed([deployment()])}

    def deployment() -> Json:
        found = kube.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{manifests.NAME}")
        assert found is not None
        return {**found, "kind": "Deployment"}

    def roll_out(name: str, replicas: int) -> None:
        """As it would stand after the last release: a ReplicaSet with the Deployment's pods."""
        spec = deployment()["spec"]
        labels = spec["template"]["metadata"]["labels"]
        template = {**spec["template"], "metadata": {"labels": {**labels, "pod-template-hash": name}}}
        selector = {"matchLabels": {**labels, "pod-template-hash": name}}
        body: Json = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "labels": labels}}
        kube.apply(
            f"{sets}/{name}", {**body, "spec": {"replicas": replicas, "selector": selector, "template": template}}
        )

    def scale(name: str, replicas: int) -> None:
        kube.json("PATCH", f"{sets}/{name}", {"spec": {"replicas": replicas}}, "application/merge-patch+json")

    def there() -> set[str]:
        return {item["metadata"]["name"] for item in kube.json("GET", maps)["items"]} - {"kube-root-ca.crt"}

    good = release("install", ["good"])
    roll_out("good", 2)
    before = {name: (kube.get(f"{maps}/{name}") or {})["data"] for name in good}
    bad = release("upgrade", ["bad"])
    roll_out("bad", 1)
    assert there() == good | bad
    worse = release("upgrade", ["worse"])
    roll_out("worse", 1)
    scale("bad", 0)
    assert (len(good | bad | worse), there()) == (4, good | bad | worse)
    assert {name: (kube.get(f"{maps}/{name}") or {})["data"] for name in good} == before
    mended = release("upgrade", ["mended"])
    assert there() == good | worse | mended
    scale("good", 0)
    scale("worse", 0)
    mended = release("upgrade", ["mended"])
    assert there() == mended
