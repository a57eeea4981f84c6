"""manifests/ on a real API server: accepted, restricted, and with exactly the rights that the bridge uses.

The bridge runs as a process of the test, with the service account's own token, the rendered environment and
bridge.yaml. What it did stands in the API server's audit log, which is compared with what its Role grants, both ways.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import bridge
from bridge.config import catalogue, load
from bridge.core.model import Kind
from bridge.kube.client import KubeClient
from bridge.kube.events import About, Event, EventRecorder
from tests.conftest import Eventually
from tests.support.lab import Lab, await_rights, free_port, manifests
from tests.support.lab.providers import binaries
from tests.support.options import kube_config
from tests.support.program import environment
from tests.support.raw import (
    SERVICES,
    SLICES,
    RawConsul,
    RawKube,
    UnexpectedAnswerError,
    not_ready_addresses,
    ready_addresses,
)

Json = dict[str, Any]
Verbs = set[tuple[str, str, str]]

CLUSTER_WIDE = {"nodes": "nodes", "node-addresses": "nodes", "namespace-labels": "namespaces"}
"""Components with a cluster-wide role of their own, and what that is about."""

ALONE = ("admission", "http-routes")
"""Those that add something of their own, and patch nothing that others add."""

COMBINATIONS = [
    chosen
    for size in range(len(manifests.COMPONENTS) + 1)
    for chosen in combinations(manifests.COMPONENTS, size)
    if not any(set(pair) <= set(chosen) for pair in manifests.EXCLUSIVE)
    # what touches no rights is tried alone, with each other one, and with everything else:
    and (
        size <= 2
        # as many as go together, one of each pair
        or (
            size == len(manifests.COMPONENTS) - len(manifests.EXCLUSIVE)
            and ("endpoints-only" in chosen) == ("cronjob" in chosen)
            and ("consul-login" in chosen) == ("consul-tls" in chosen)
        )
        or not {
            *CLUSTER_WIDE,
            "consul-ca",
            "consul-tls",
            "consul-login",
            "shards",
            "monitoring",
            "admission",
            "http-routes",
        }
        & set(chosen)
    )
]

# What every authenticated user may ask about itself, by the cluster's own roles.
EVERYBODYS = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
}

# The entry point of the wheel, whether or not it is installed here.
BRIDGE = (sys.executable, "-c", "import sys; from bridge.cli import main; sys.exit(main())")


# --------------------------------------------------------------------------- rendering


@pytest.mark.parametrize("components", COMBINATIONS, ids=lambda c: "+".join(c) or "base")
def test_it_renders_whole(components: Sequence[str], tmp_path: Path) -> None:
    """With any set of components, in the namespace of the user's overlay, every reference finds its object."""
    objects = manifests.overlay(tmp_path, "elsewhere", components)
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    account = {"kind": "ServiceAccount", "name": manifests.NAME, "namespace": "elsewhere"}
    bindings = [o for o in objects if o["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert len(bindings) == 2 + len(CLUSTER_WIDE.keys() & set(components))
    for binding in bindings:
        assert binding["subjects"] == [account]
        assert binding["kind"] == f"{binding['roleRef']['kind']}Binding"
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in names
    assert manifests.pod_template(objects)["spec"]["serviceAccountName"] == manifests.NAME
    assert manifests.container(objects)["image"] == f"{manifests.NAME}:{bridge.__version__}"
    assert manifests.environment(objects)["CONSUL_HTTP_ADDR"]
    assert "rules:" in manifests.configuration(objects)
    assert ("CronJob" in {k for k, _ in names}, "Deployment" in {k for k, _ in names}) == (
        "cronjob" in components,
        "cronjob" not in components,
    )


@pytest.mark.parametrize("components", [("cronjob", "monitoring"), ("monitoring", "cronjob")])
def test_monitoring_beside_a_cron_job_is_refused(components: Sequence[str], tmp_path: Path) -> None:
    """No one could scrape it, and the alert for absence would ring forever; whichever is named first."""
    with pytest.raises(AssertionError, match="monitoring finds nothing to scrape beside a CronJob"):
        manifests.overlay(tmp_path, "elsewhere", components)


def test_a_second_installation_in_one_namespace_stays_apart(tmp_path: Path) -> None:
    """By the overlay that README.md shows: no object of one name, and no selector of one finds pods of the other."""
    text = (manifests.MANIFESTS / "README.md").read_text()
    shown = text.partition("```yaml\n# kustomization.yaml\n")[2].partition("```")[0]
    base = os.path.relpath(manifests.MANIFESTS / "base", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(shown.replace("../../base", base))
    blue = manifests.kustomize(tmp_path)
    (namespace,) = {o["metadata"]["namespace"] for o in blue}
    first = manifests.overlay(tmp_path / "first", namespace)
    assert {(o["kind"], o["metadata"]["name"]) for o in blue} & {
        (o["kind"], o["metadata"]["name"]) for o in first
    } == set()
    for ours, theirs in ((blue, first), (first, blue)):
        pods, others = (manifests.pod_template(o)["metadata"]["labels"].items() for o in (ours, theirs))
        selectors = [found for o in ours for found in selectors_in(o)]
        assert len(selectors) == 5
        assert [s for s in selectors if not s.items() <= pods or s.items() <= others] == []


def selectors_in(value: Any) -> Iterator[Mapping[str, str]]:
    """The labels of every selector in an object."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "matchLabels" or (key == "selector" and "matchLabels" not in part):
                yield part
            else:
                yield from selectors_in(part)
    for part in value if isinstance(value, list) else []:
        yield from selectors_in(part)


def test_requests_and_limits_are_what_was_measured(tmp_path: Path) -> None:
    """The request is enough for 1,000 services, the limit for every size; README.md has docs/scaling.md's figures."""
    scaling = (manifests.MANIFESTS.parent / "docs/scaling.md").read_text()
    guide = (manifests.MANIFESTS / "README.md").read_text()
    rows = re.findall(r"^\| memory(?: after a storm)?, (\S+ services x \S+) \| (\d+) MB \|", scaling, re.MULTILINE)
    assert len(rows) >= 5
    (ordinary,) = (int(size) for label, size in rows if label == "1,000 services x 4")
    for components in ((), ("cronjob",)):
        resources = manifests.container(manifests.overlay(tmp_path, "elsewhere", components))["resources"]
        assert ordinary < megabytes(resources["requests"]["memory"])
        assert max(int(size) for _, size in rows) * 1.5 < megabytes(resources["limits"]["memory"])
    behind = [size for _, size in rows if f"{size} MB" not in guide]
    assert behind == [], "manifests/README.md is behind docs/scaling.md"


def megabytes(text: str) -> float:
    """A quantity like 128Mi in megabytes, as docs/scaling.md has them."""
    assert text.endswith("Mi")
    return int(text.removesuffix("Mi")) * 2**20 / 1e6


def test_make_image_builds_what_the_manifests_run(tmp_path: Path) -> None:
    """The same name and version, so that an image which is loaded into the nodes is found; every label is given."""
    root = manifests.MANIFESTS.parent
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
    done = subprocess.run(
        ("make", "--dry-run", "image"), cwd=root, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = manifests.container(manifests.overlay(tmp_path, "elsewhere"))["image"]
    assert re.findall(r"\btag=(\S+?);", done.stdout) == [image]
    arguments = set(re.findall(r"--build-arg[ =](\w+)", done.stdout))
    labelled = set(re.findall(r'org\.opencontainers\.image\.[\w.]+="\$\{(\w+)\}"', (root / "Dockerfile").read_text()))
    assert labelled == {"VERSION", "REVISION", "SOURCE", "CREATED", "BASE_NAME", "BASE_DIGEST"}
    assert arguments == labelled | {"BASE", "SOURCE_DATE_EPOCH"}


def test_a_start_makes_no_warning_and_an_end_says_why(tmp_path: Path) -> None:
    """The first probe comes when there is something to probe, a process that hangs is given no half minute more, the
    last lines of the log stand in `kubectl describe pod`. (The chart says the same: test_chart.py compares them.)"""
    found = manifests.container(manifests.overlay(tmp_path, "elsewhere"))
    assert found["startupProbe"]["initialDelaySeconds"] >= 2
    assert found["livenessProbe"]["terminationGracePeriodSeconds"] <= 5
    assert found["terminationMessagePolicy"] == "FallbackToLogsOnError"


def lacking(objects: Sequence[Json]) -> set[tuple[str, str]]:
    """ConfigMaps and Secrets that the pod waits for, and that are not among the objects."""
    return manifests.needed(objects) - {(o["kind"], o["metadata"]["name"]) for o in objects}


def test_the_example_overlay_renders() -> None:
    """What README.md tells to copy, with its own rules, Consul and namespace."""
    objects = manifests.kustomize(manifests.MANIFESTS / "overlays/example")
    assert {o["metadata"].get("namespace") for o in objects} == {"storage"}
    environment = manifests.environment(objects)
    assert environment["CONSUL_HTTP_ADDR"].startswith("https://")
    assert environment["CONSUL_HTTP_TOKEN_FILE"] == "/etc/consul-acl/token"
    assert "postgres" in manifests.configuration(objects)
    assert lacking(objects) == {("Secret", f"{manifests.NAME}-acl")}  # the one that docs/operations.md has made before


def test_the_demo_overlay_needs_nothing_that_it_does_not_make() -> None:
    """Its pods start with what `kubectl apply -k` made and the namespace: plain Consul, no token, no certificate."""
    objects = manifests.kustomize(manifests.MANIFESTS / "overlays/demo")
    assert {o["metadata"].get("namespace") for o in objects} == {"storage"}
    environment = manifests.environment(objects)
    assert environment["CONSUL_HTTP_ADDR"].startswith("http://")
    assert not any("TOKEN" in name or "CERT" in name for name in environment)
    assert lacking(objects) == set()


@pytest.mark.parametrize("components", COMBINATIONS, ids=lambda c: "+".join(c) or "base")
def test_its_settings_are_understood(components: Sequence[str], tmp_path: Path) -> None:
    """Every variable and every key of the ConfigMap is one of the bridge's own, and none of them raises a doubt."""
    objects = manifests.overlay(tmp_path, "elsewhere", components)
    config = tmp_path / "container-bridge.yaml"
    config.write_text(manifests.configuration(objects))
    environment = {**manifests.environment(objects), "BRIDGE_CONFIG": str(config)}
    known = {name for setting in catalogue() for name in (setting.env, *setting.also)}
    known |= {"BRIDGE_CONFIG", *manifests.OF_THE_POD}
    unknown = set(environment) - known
    loaded = load(environ=environment)
    assert (unknown, loaded.notes) == (set(), ())
    assert (loaded.log.format, loaded.rules is not None) == ("json", True)
    assert loaded.run.instance_name == "elsewhere/consul-endpoints-bridge"
    assert loaded.owner == "elsewhere.consul-endpoints-bridge"


# --------------------------------------------------------------------------- on the API server


@dataclass(frozen=True, slots=True)
class Cluster:
    """The lab's servers, with a namespace of the test's own."""

    lab: Lab
    kube: RawKube
    namespace: str

    def install(self, folder: Path, components: Sequence[str] = (), rules: str | None = None) -> list[Json]:
        """Render, apply, and give back what was applied."""
        consul = self.lab.consul.address
        objects = manifests.overlay(folder, self.namespace, components, rules=rules, consul=consul)
        manifests.apply(self.kube, objects)
        return objects


@pytest.fixture(scope="module")
def monitoring(lab: Lab) -> Iterator[None]:
    """The API server knows the kinds of components/monitoring."""
    with lab.raw_kube() as kube, manifests.monitoring_kinds(kube):
        yield


@pytest.fixture(scope="module")
def gateway_api(lab: Lab) -> Iterator[None]:
    """The API server knows HTTPRoutes."""
    with lab.raw_kube() as kube, manifests.gateway_kinds(kube):
        yield


@pytest.fixture
def cluster(lab: Lab, kube: RawKube, monitoring: None, namespace: str) -> Iterator[Cluster]:
    """A fresh namespace, removed with everything in it, and without what a component made beside it."""
    yield Cluster(lab, kube, namespace)
    for kind in ("clusterrolebindings", "clusterroles"):
        for name in (manifests.NAME, *(f"{manifests.NAME}-{component}" for component in CLUSTER_WIDE)):
            kube.delete(f"/apis/rbac.authorization.k8s.io/v1/{kind}/{name}")
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        kube.delete(f"/apis/admissionregistration.k8s.io/v1/{kind}/{manifests.NAME}")


@pytest.mark.lab
@pytest.mark.parametrize("components", COMBINATIONS, ids=lambda c: "+".join(c) or "base")
def test_the_api_server_accepts_it(cluster: Cluster, components: Sequence[str], tmp_path: Path) -> None:
    """Applied, and applied again without a change."""
    objects = manifests.overlay(tmp_path, cluster.namespace, components)
    first = manifests.apply(cluster.kube, objects)
    second = manifests.apply(cluster.kube, objects)
    assert [o["metadata"]["resourceVersion"] for o in second] == [o["metadata"]["resourceVersion"] for o in first]


@pytest.mark.lab
@pytest.mark.parametrize("components", [("namespace",), ("namespace", "cronjob"), ("namespace", "consul-acl")])
def test_its_pod_keeps_the_restricted_standard(
    cluster: Cluster, components: Sequence[str], eventually: Eventually, tmp_path: Path
) -> None:
    """The namespace enforces it: the pod is let in, and one that lacks any one promise is not."""
    objects = cluster.install(tmp_path, components)
    pods = f"/api/v1/namespaces/{cluster.namespace}/pods?dryRun=All"

    def admitted(change: Callable[[Json], object]) -> str:
        template = copy.deepcopy(manifests.pod_template(objects))
        change(template["spec"])
        body = {**template, "metadata": {**template["metadata"], "name": "probe"}}
        try:
            cluster.kube.json("POST", pods, body)
        except UnexpectedAnswerError as error:
            return "refused" if error.status == 403 and "PodSecurity" in str(error) else str(error)
        return "admitted"

    assert admitted(lambda _: None) == "admitted"
    # The API server learns of the namespace's label by a watch.
    eventually(lambda: admitted(lambda s: s["securityContext"].pop("seccompProfile")), "refused")
    assert [
        admitted(lambda s: s["securityContext"].pop("seccompProfile")),
        admitted(lambda s: s["securityContext"].update(runAsNonRoot=False)),
        admitted(lambda s: s["securityContext"].update(runAsUser=0)),
        admitted(lambda s: s["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")),
        admitted(lambda s: s["containers"][0]["securityContext"].pop("capabilities")),
    ] == ["refused"] * 5


@pytest.mark.lab
def test_a_drain_is_not_held_up_by_replicas_that_are_not_ready(cluster: Cluster, tmp_path: Path) -> None:
    """While Consul is away no replica is ready: each may be evicted. A ready one keeps the last place."""
    objects = cluster.install(tmp_path)
    template = manifests.pod_template(objects)
    pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
    (budget,) = (manifests.path(o) for o in objects if o["kind"] == "PodDisruptionBudget")

    def evicted(name: str, *, ready: bool) -> int:
        """What the API server says to a drain; the kubelet's and the disruption controller's parts are written here."""
        spec = {**template["spec"], "schedulerName": "nobody"}
        cluster.kube.json("POST", pods, {"metadata": {**template["metadata"], "name": name}, "spec": spec})
        conditions = [{"type": "Ready", "status": str(ready)}]
        status: Json = {"phase": "Running", "conditions": conditions}
        cluster.kube.json("PATCH", f"{pods}/{name}/status", {"status": status}, "application/merge-patch+json")
        generation = (cluster.kube.get(budget) or {})["metadata"]["generation"]
        status = {"observedGeneration": generation, "disruptionsAllowed": 0, "currentHealthy": int(ready),
                  "desiredHealthy": 1, "expectedPods": 2}  # fmt: skip
        cluster.kube.json("PATCH", f"{budget}/status", {"status": status}, "application/merge-patch+json")
        body = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}).encode()
        answer = cluster.kube.send("POST", f"{pods}/{name}/eviction", body, {"Content-Type": "application/json"})
        return answer[0]

    assert (evicted("sick", ready=False), evicted("well", ready=True)) == (201, 429)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("PodMonitor", lambda spec: spec.update(podMetricEndpoints=[])),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(interval="often")),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].update(fore="1m")),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].pop("expr")),
    ],
)
def test_the_kinds_for_monitoring_refuse_what_is_wrong(
    cluster: Cluster, kind: str, change: Callable[[Json], object], tmp_path: Path
) -> None:
    """So that their acceptance of the component says something."""
    found = copy.deepcopy(manifests.of_kind(manifests.overlay(tmp_path, cluster.namespace, ("monitoring",)), kind))
    manifests.apply(cluster.kube, [found])
    change(found["spec"])
    with pytest.raises(UnexpectedAnswerError, match=r"field not declared in schema|Invalid value|Required value"):
        manifests.apply(cluster.kube, [found])


def repeat_an_event(environment: Mapping[str, str], namespace: str) -> None:
    """What a bridge does about an Event that goes on for five minutes, at once: made, then counted."""
    client = KubeClient(kube_config(kubeconfig=environment["KUBECONFIG"]))
    recorder = EventRecorder(client, series_seconds=0.0)
    try:
        for _ in range(2):
            about = About(Kind.SERVICE, namespace, "repeated")
            recorder.send(Event(about, "Warning", "Conflict", "Mirror", "an object that we would need is not ours"))
        assert (recorder.sent, recorder.failed) == (2, 0)
    finally:
        recorder.close()
        client.close()


def audited(cluster: Cluster, since: float = 0.0) -> tuple[Verbs, list[str], Verbs]:
    """What the service account did: (group, resource, verb), what was refused, and what reached beyond a namespace.

    An apply that made an object is logged as `patch` with 201, and takes `create` as well.
    """
    used: Verbs = set()
    refused: list[str] = []
    beyond: Verbs = set()
    for entry in cluster.lab.audit(user=f"system:serviceaccount:{cluster.namespace}:{manifests.NAME}", since=since):
        act = (entry.group, entry.resource, entry.verb)
        if not entry.resource or act in EVERYBODYS:
            continue
        if entry.decision == "forbid" or entry.code == 403:
            refused.append(f"{entry.verb} {entry.uri}")
            continue
        used.add(act)
        if entry.verb == "patch" and entry.code == 201:
            used.add((entry.group, entry.resource, "create"))
        if not entry.namespace:
            beyond.add(act)
    return used, refused, beyond


def environment_of(objects: Sequence[Json], kubeconfig: Path, folder: Path, **more: str) -> dict[str, str]:
    """The container's environment, moved out of the container: its files, the cluster's address, a port of its own."""
    config = folder / "container-bridge.yaml"
    config.write_text(manifests.configuration(objects))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "BRIDGE_", "KUBE"))}
    return {
        **inherited,
        **manifests.environment(objects),
        "BRIDGE_CONFIG": str(config),
        "KUBECONFIG": str(kubeconfig),
        **more,
    }


class Services:
    """Three VMs of one service in Consul, and what the bridge made of them."""

    def __init__(self, cluster: Cluster, consul: RawConsul, name: str, namespaces: Sequence[str]) -> None:
        self.cluster, self.consul, self.name, self.namespaces = cluster, consul, name, namespaces
        self.nodes = {f"{name}-{n}": f"10.9.0.{n}" for n in (1, 2, 3)}

    def register(self) -> None:
        for node, address in self.nodes.items():
            self.consul.register(self.name, node, address, 8080)

    def break_one(self) -> None:
        self.consul.flip(self.name, min(self.nodes), "critical")

    def deregister(self) -> None:
        for node in self.nodes:
            self.consul.drop_node(node)

    def mirrored(self) -> set[tuple[int, int, bool]]:
        """(ready, not ready, Service there) in each of the namespaces, which all should be alike."""
        kube = self.cluster.kube
        found = set()
        for namespace in self.namespaces:
            endpoints = kube.endpoints(namespace, self.name)
            service = kube.get(f"{SERVICES.format(namespace=namespace)}/{self.name}")
            found.add((len(ready_addresses(endpoints)), len(not_ready_addresses(endpoints)), service is not None))
        return found

    def slices(self) -> int:
        """EndpointSlices of our own in the first namespace."""
        items = self.cluster.kube.json("GET", SLICES.format(namespace=self.namespaces[0]))["items"]
        return sum(
            i["metadata"]["labels"].get("endpointslice.kubernetes.io/managed-by") == "consul-bridge" for i in items
        )


@pytest.fixture
def services(cluster: Cluster) -> Iterator[Callable[..., Services]]:
    """Makes services with names of their own; they are out of Consul afterwards."""
    made: list[Services] = []
    with contextlib.closing(RawConsul(cluster.lab.consul.address)) as consul:

        def make(*namespaces: str) -> Services:
            made.append(Services(cluster, consul, f"gw-{uuid4().hex[:8]}", namespaces or (cluster.namespace,)))
            return made[-1]

        yield make
        for each in made:
            each.deregister()


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """The bridge as a process; it must still be alive at the end, and go on SIGTERM."""
    with log.open("wb") as output:
        process = subprocess.Popen((*BRIDGE, *command), env=dict(environment), stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-6000:]}") from error
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def rules_for(name: str, *, output: str | None = None, namespaces: Sequence[str] = (), route: bool = False) -> str:
    """bridge.yaml for one service: into the bridge's own namespace, or into one per datacenter placeholder."""
    to: Json = {"name": "{service}", "port": 8080, "port_name": "http"}
    if output:
        to["output"] = output
    if route:
        to["route"] = {"parents": [{"name": "public"}], "hostnames": ["{name}.example.com"]}
    if namespaces:
        to["namespace"] = namespaces[0]
    text = json.dumps({"rules": [{"services": [name], "to": to}]})  # JSON is YAML
    assert name in text
    return text


def identity(cluster: Cluster, objects: Sequence[Json], folder: Path, **more: str) -> dict[str, str]:
    """The environment in which the bridge is the service account and nothing else."""
    user = f"system:serviceaccount:{cluster.namespace}:{manifests.NAME}"
    for kind, where in (("Role", cluster.namespace), ("ClusterRole", "")):
        await_rights(cluster.kube, user, where, manifests.granted([o for o in objects if o["kind"] == kind]))
    server, ca = manifests.cluster_of(cluster.lab.kubeconfig)
    bearer = manifests.token(cluster.kube, cluster.namespace)
    kubeconfig = manifests.kubeconfig_with(folder / "account.yaml", server, ca, bearer, cluster.namespace)
    return environment_of(objects, kubeconfig, folder, **more)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("output", "components"),
    [
        (None, ()),
        ("endpoints", ("endpoints-only",)),
        ("endpointslices", ("endpointslices-only",)),
        ("endpointslices", ("endpointslices-only", "nodes")),
        (None, ("namespace-labels",)),
        (None, ("http-routes",)),
    ],
    ids=["both", "endpoints", "endpointslices", "nodes", "namespace-labels", "http-routes"],
)
def test_run_uses_exactly_what_its_role_grants(
    cluster: Cluster,
    services: Callable[..., Services],
    eventually: Eventually,
    output: str | None,
    components: Sequence[str],
    gateway_api: None,
    tmp_path: Path,
) -> None:
    """A service comes, turns unhealthy and goes: nothing is refused, and every verb granted is needed."""
    service = services()
    rules = rules_for(service.name, output=output, route="http-routes" in components)
    if "namespace-labels" in components:
        rules = json.dumps({**json.loads(rules), "annotated": [{"namespace_selector": "team=a"}]})
    objects = cluster.install(tmp_path, components, rules)
    environment = identity(cluster, objects, tmp_path, BRIDGE_LISTEN="127.0.0.1:0", BRIDGE_REMOVAL_GRACE_PERIOD="1s")
    with running(manifests.container(objects)["args"], environment, tmp_path / "log"):
        service.register()
        eventually(service.mirrored, {(3, 0, True)} if output != "endpointslices" else {(0, 0, True)})
        eventually(service.slices, 0 if output == "endpoints" else 1)
        service.break_one()
        if output != "endpointslices":
            eventually(service.mirrored, {(2, 1, True)})
        service.deregister()
        eventually(service.mirrored, {(0, 0, False)})
    repeat_an_event(environment, cluster.namespace)
    used, refused, beyond = audited(cluster)
    assert refused == []
    assert beyond == {
        act for act in manifests.granted(objects) if act[1] in {CLUSTER_WIDE.get(name) for name in components}
    }
    assert used == manifests.granted(objects)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "components"),
    [
        ("both", ()),
        ("endpoints", ("endpoints-only",)),
        ("endpointslices", ("endpointslices-only",)),
        ("both", ("cronjob",)),
    ],
    ids=["both", "endpoints", "endpointslices", "cronjob"],
)
def test_check_agrees_with_the_role_and_names_every_verb_that_it_lacks(
    cluster: Cluster, output: str, components: Sequence[str], tmp_path: Path
) -> None:
    """With what the manifests grant nothing fails; with any one verb less it is named, with status 1."""
    objects = cluster.install(tmp_path, components, rules_for("web", output=output))
    bare = {k: v for k, v in environment_of(objects, tmp_path / "none", tmp_path).items() if k != "KUBECONFIG"}
    rules = [r for o in objects if o["kind"] == "Role" for r in o["rules"]]

    def asked(name: str, granted: list[Json]) -> tuple[int, Json]:
        kubeconfig = cluster.lab.service_account(cluster.namespace, name, granted)
        done = subprocess.run(
            (*BRIDGE, "check", "-o", "json"), env={**bare, "KUBECONFIG": str(kubeconfig)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        found = [p for p in json.loads(done.stdout)["probes"] if p["probe"].startswith(("rights", "leader election"))]
        bad = {p["probe"]: p for p in found if p["state"] != "ok"}
        return done.returncode, {"states": {p["state"] for p in bad.values()}, "text": json.dumps(list(bad.values()))}

    status, whole = asked("whole", rules)
    if components == ("cronjob",):  # no leader election in its environment: it may be for either, and watching lacks
        assert (status, whole["states"], "enough for bridge sync" in whole["text"]) == (0, {"warning"}, True)
    else:
        assert (status, whole["states"]) == (0, set())
    wrong = []
    for number, (place, verb) in enumerate((i, v) for i, rule in enumerate(rules) for v in rule["verbs"]):
        fewer = copy.deepcopy(rules)
        fewer[place]["verbs"].remove(verb)
        status, said = asked(f"fewer-{number}", [rule for rule in fewer if rule["verbs"]])
        resource = rules[place]["resources"][0]
        spared = resource == "endpointslices" and output == "both" and verb not in ("list", "watch")
        unseen = resource == "leases" and components == ("cronjob",)
        expected = (0, {"warning"}) if resource == "events" or spared or unseen else (1, {"failed"})
        if (status, said["states"]) != expected or f"{verb} {resource}" not in said["text"]:
            wrong.append((verb, resource, status, said))
    assert wrong == []


@pytest.mark.lab
def test_a_cron_job_uses_exactly_what_its_role_grants(
    cluster: Cluster, services: Callable[..., Services], eventually: Eventually, tmp_path: Path
) -> None:
    """Three passes, with what happens in between; watching is not among the rights."""
    service = services()
    objects = cluster.install(tmp_path, ("cronjob",), rules_for(service.name))
    environment = identity(cluster, objects, tmp_path, BRIDGE_REMOVAL_GRACE_PERIOD="0s")
    for change, expected in (
        (service.register, {(3, 0, True)}),
        (service.break_one, {(2, 1, True)}),
        (service.deregister, {(0, 0, False)}),
    ):
        change()
        done = subprocess.run(
            (*BRIDGE, *manifests.container(objects)["args"]),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        eventually(service.mirrored, expected)
    used, refused, beyond = audited(cluster)
    assert refused == []
    assert beyond == set()
    assert used == manifests.granted(objects)


@pytest.mark.lab
def test_all_namespaces_writes_where_the_rule_says(
    cluster: Cluster, services: Callable[..., Services], eventually: Eventually, tmp_path: Path
) -> None:
    """With the component, into a namespace that is not the bridge's own; without it, that is refused and said."""
    other = f"{cluster.namespace}-b"
    cluster.kube.json("POST", "/api/v1/namespaces", {"metadata": {"name": other}})
    try:
        service = services(other)
        rules = rules_for(service.name, namespaces=(other,))
        service.register()
        objects = cluster.install(tmp_path / "without", (), rules)
        environment = identity(
            cluster, objects, tmp_path, BRIDGE_LISTEN="127.0.0.1:0", BRIDGE_REMOVAL_GRACE_PERIOD="1s"
        )
        done = subprocess.run(
            (*BRIDGE, "sync", "--yes"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, other in done.stderr, service.mirrored()) == (1, True, {(0, 0, False)}), done.stderr
        manifests.delete(cluster.kube, objects)

        since = time.time()
        objects = cluster.install(tmp_path / "with", ("all-namespaces",), rules)
        environment = identity(
            cluster, objects, tmp_path, BRIDGE_LISTEN="127.0.0.1:0", BRIDGE_REMOVAL_GRACE_PERIOD="1s"
        )
        with running(manifests.container(objects)["args"], environment, tmp_path / "log"):
            eventually(service.mirrored, {(3, 0, True)})
            service.break_one()
            eventually(service.mirrored, {(2, 1, True)})
            service.deregister()
            eventually(service.mirrored, {(0, 0, False)})
        repeat_an_event(environment, other)
        used, refused, beyond = audited(cluster, since)
        assert refused == []
        assert {verb for _, _, verb in beyond} == {"list", "watch"}
        assert used == manifests.granted(objects)
    finally:
        cluster.kube.delete(f"/api/v1/namespaces/{other}")


@pytest.mark.lab
def test_the_three_commands_of_the_readme(
    lab: Lab, kube: RawKube, consul: RawConsul, prefix: str, eventually: Eventually, tmp_path: Path
) -> None:
    """From an empty cluster to mirrored services, with nothing made by hand that the commands do not make.

    No pod can run here: what a kubelet would wait for is looked up, and the container's command runs as its account,
    in its own environment. Of the manifests only Consul's address is changed, as README.md says.
    """
    text = (manifests.MANIFESTS.parent / "README.md").read_text()
    commands = text.partition("In a cluster: ")[2].partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 3
    shutil.copytree(manifests.MANIFESTS, tmp_path / "manifests")
    (overlay,) = re.findall(r" -k (manifests/overlays/\S+)", commands[0])
    file = tmp_path / overlay / "kustomization.yaml"
    adapted, places = re.subn(r"(?<=- CONSUL_HTTP_ADDR=)\S+", lab.consul.address, file.read_text())
    assert places == 1
    file.write_text(adapted)
    tools = binaries(["kubectl"])
    env = environment(lab.consul.address, lab.kubeconfig)
    env["PATH"] = f"{tools['kubectl'].parent}:{env['PATH']}"

    def run(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    consul.register("radosgw", f"{prefix}vm-1", "10.9.1.1", 8080)
    consul.register("postgres", f"{prefix}vm-2", "10.9.1.2", 5432)
    try:
        run(commands[0])
        run(commands[1])
        objects = manifests.kustomize(tmp_path / overlay)
        needed = manifests.needed(objects)
        assert {"ConfigMap"} <= {kind for kind, _ in needed}
        waited_for = {
            (kind, name)
            for kind, name in needed
            if kube.get(manifests.path({"apiVersion": "v1", "kind": kind,
                                        "metadata": {"name": name, "namespace": "storage"}})) is None
        }  # fmt: skip
        assert waited_for == set(), "the pods would stay in ContainerCreating"
        cluster = Cluster(lab, kube, "storage")
        env_of_container = identity(cluster, objects, tmp_path, BRIDGE_LISTEN="127.0.0.1:0")
        with running(manifests.container(objects)["args"], env_of_container, tmp_path / "log"):
            for name, expected in (("radosgw", ("10.9.1.1", 8080)), ("database", ("10.9.1.2", 5432))):
                eventually(partial(lambda n: ready_addresses(kube.endpoints("storage", n)), name), [expected], 30)
        shown = run(commands[2])
        assert re.search(r"service/radosgw +ClusterIP", shown)
        assert re.search(r"endpoints/database +10\.9\.1\.2:5432", shown)
    finally:
        kube.delete("/api/v1/namespaces/storage")


@pytest.mark.lab
def test_its_probes_answer(
    cluster: Cluster, services: Callable[..., Services], eventually: Eventually, tmp_path: Path
) -> None:
    """The paths of the Deployment's probes, on the port that it names, and the metrics that the Service is for."""
    service = services()
    objects = cluster.install(tmp_path, (), rules_for(service.name))
    spec = manifests.container(objects)
    host, _, port = manifests.environment(objects)["BRIDGE_LISTEN"].rpartition(":")
    assert (host, port) == ("0.0.0.0", str(spec["ports"][0]["containerPort"]))
    ours = free_port()
    environment = identity(cluster, objects, tmp_path, BRIDGE_LISTEN=f"127.0.0.1:{ours}")
    with running(spec["args"], environment, tmp_path / "log"):
        paths = [spec[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")]
        for path in [*paths, "/metrics"]:
            eventually(partial(status, f"http://127.0.0.1:{ours}{path}"), 200)


def status(address: str) -> int:
    """The HTTP status at an address, 0 when nothing answers."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
