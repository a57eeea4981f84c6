"""Programs that register in Consul, and controllers that touch the same objects: what docs/neighbours.md says of them.

neighbours.yaml has the registrations, as the programs send them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.lab import Lab, free_port
from tests.support.program import Result, bridge, environment
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawConsul, RawKube

pytestmark = pytest.mark.lab

Json = dict[str, Any]
Eventually = Callable[..., None]
NEIGHBOURS: dict[str, Json] = yaml.safe_load(Path(__file__).with_name("neighbours.yaml").read_text())


class Well(BaseHTTPRequestHandler):
    """Answers every check with 200."""

    def do_GET(self) -> None:
        """The request of Consul's agent."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def checked() -> Iterator[str]:
    """The host and port of a server whose checks pass."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def registered(consul: RawConsul) -> Iterator[Callable[[list[Json]], None]]:
    """Send a neighbour's requests; what was registered with the agent goes afterwards."""
    ids: list[str] = []

    def send(requests: list[Json]) -> None:
        for line, body in (item for request in requests for item in request.items()):
            method, path = line.split()
            consul.json(method, path, body)
            ids.extend([body["ID"]] if "/agent/" in path else [])

    yield send
    for each in ids:
        consul.json("PUT", f"/v1/agent/service/deregister/{quote(each, safe='')}")


def filled(value: Any, words: dict[str, str]) -> Any:
    """A fixture with its placeholders replaced; braces of the rules' own templates stay."""
    text = yaml.safe_dump(value)
    for word, meant in words.items():
        text = text.replace(f"{{{word}}}", meant)
    return yaml.safe_load(text)


def sync(lab: Lab, folder: Path, namespace: str, rules: list[Json], command: str = "sync", **more: Any) -> Result:
    """One command with these rules."""
    whole = [{**rule, "to": {"namespace": namespace, **rule["to"]}} for rule in rules]
    file = folder / "bridge.yaml"
    settings = {"kubernetes": {"watch_namespaces": [namespace]}, "dns": {"resolve": False}, **more}
    file.write_text(yaml.safe_dump({"rules": whole, **settings}))
    further = ("--yes",) if command == "sync" else ()
    return bridge(
        command, "--config", str(file), "-o", "json", *further, env=environment(lab.consul.address, lab.kubeconfig)
    )


def mirrored(kube: RawKube, namespace: str) -> dict[str, list[str]]:
    """What the EndpointSlices of a namespace say, by Service."""
    found: dict[str, list[str]] = {}
    for item in kube.json("GET", SLICES.format(namespace=namespace))["items"]:
        places = found.setdefault(item["metadata"]["labels"]["kubernetes.io/service-name"], [])
        for port in item["ports"]:
            protocol = "" if port["protocol"] == "TCP" else f"/{port['protocol']}"
            for endpoint in item["endpoints"]:
                state = "ready" if endpoint["conditions"]["ready"] else "not ready"
                places.extend(f"{address}:{port['port']}{protocol} {state}" for address in endpoint["addresses"])
    return {service: sorted(places) for service, places in found.items()}


@pytest.mark.parametrize("unwise", [False, True], ids=["as its page says", "what to avoid"])
def test_what_neighbours_register_is_mirrored(
    lab: Lab, kube: RawKube, namespace: str, prefix: str, tmp_path: Path, checked: str, unwise: bool,
    registered: Callable[[list[Json]], None], eventually: Eventually,
) -> None:  # fmt: skip
    """With the rules of the page, and again without a write; nothing of it is a failure or a conflict."""
    words = {"p": prefix, "checked": checked, "refused": f"127.0.0.1:{free_port()}"}
    said = [filled(entry, words) for entry in NEIGHBOURS.values() if entry.get("unwise", False) is unwise]
    registered([request for entry in said for request in entry["requests"]])
    rules = [rule for entry in said for rule in entry["rules"]]
    places = {service: sorted(found) for entry in said for service, found in entry["expect"].items()}
    skipped = {instance: reason for entry in said for instance, reason in entry.get("skipped", {}).items()}

    def outcome() -> tuple[dict[str, list[str]], dict[str, str]]:
        report = sync(lab, tmp_path, namespace, rules).json
        assert (report["failed"], report["conflicts"]) == ([], [])
        return mirrored(kube, namespace), {
            row["instance"].partition("/")[2]: row["reason"] for row in report["skipped"]
        }

    eventually(outcome, (places, skipped))
    summary = sync(lab, tmp_path, namespace, rules).json["summary"]
    assert (summary["create"], summary["update"], summary["delete"]) == (0, 0, 0)


MARKS: dict[str, tuple[Json, Json]] = {
    "argocd-controller": (
        {"app.kubernetes.io/instance": "storage"},
        {"argocd.argoproj.io/tracking-id": "storage:/Service:storage/web"},
    ),
    "kustomize-controller": (
        {"kustomize.toolkit.fluxcd.io/name": "storage", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"},
        {"kustomize.toolkit.fluxcd.io/reconcile": "disabled"},
    ),
    "velero-server": ({"velero.io/backup-name": "nightly", "velero.io/restore-name": "nightly-1"}, {}),
    "kyverno": (
        {"cost-center": "storage"},
        {"policies.kyverno.io/last-applied-patches": "label: added /metadata/labels"},
    ),
    "istioctl": ({"istio.io/use-waypoint": "waypoint"}, {"networking.istio.io/exportTo": "."}),
}
"""By field manager: labels and annotations that controllers, backups, policy engines and meshes put on objects."""


def stored(kube: RawKube, namespace: str, name: str) -> dict[str, Json]:
    """The metadata of a Service, its Endpoints and its EndpointSlices, by path."""
    paths = [f"{kind.format(namespace=namespace)}/{name}" for kind in (SERVICES, ENDPOINTS)]
    found = [kube.json("GET", path) for path in paths]
    slices = kube.json("GET", SLICES.format(namespace=namespace))["items"]
    paths += [f"{SLICES.format(namespace=namespace)}/{item['metadata']['name']}" for item in slices]
    return {path: item["metadata"] for path, item in zip(paths, [*found, *slices], strict=True)}


def test_marks_of_other_controllers_stay_and_cost_no_write(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """On all three kinds: the next pass writes nothing, all is in sync, and their own next pass finds its marks."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.6.1", 80)
    rules: list[Json] = [{"services": [f"{prefix}web"], "to": {"name": "web"}}]
    assert sync(lab, tmp_path, namespace, rules).json["summary"]["create"] == 3

    def mark() -> dict[str, Json]:
        for path in stored(kube, namespace, "web"):
            kind = {"services": "Service", "endpoints": "Endpoints"}.get(path.split("/")[-2], "EndpointSlice")
            version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
            for manager, (labels, notes) in MARKS.items():
                metadata = {"name": path.rpartition("/")[2], "labels": labels, "annotations": notes}
                kube.apply(path, {"apiVersion": version, "kind": kind, "metadata": metadata}, manager, force=False)
        return stored(kube, namespace, "web")

    marked = mark()
    summary = sync(lab, tmp_path, namespace, rules).json["summary"]
    assert (summary["unchanged"], summary["update"], summary["conflicts"]) == (3, 0, 0)
    assert [row["state"] for row in sync(lab, tmp_path, namespace, rules, "status").json["services"]] == ["in_sync"]
    consul.register(f"{prefix}web", f"{prefix}vm-2", "10.77.6.2", 80)
    assert sync(lab, tmp_path, namespace, rules).json["summary"]["update"] == 2
    wanted = {key: value for pair in MARKS.values() for marks in pair for key, value in marks.items()}
    for path, metadata in mark().items():
        assert wanted.items() <= {**metadata["labels"], **metadata["annotations"]}.items()
        service = "/services/" in path
        assert (metadata["resourceVersion"] == marked[path]["resourceVersion"]) is service
    assert sync(lab, tmp_path, namespace, rules).json["summary"]["unchanged"] == 3


def test_a_service_that_argo_cd_keeps_is_filled_and_what_fills_it_carries_none_of_its_marks(
    lab: Lab, consul: RawConsul, kube: RawKube, namespace: str, prefix: str, tmp_path: Path
) -> None:
    """So Argo CD takes neither the Endpoints nor the slices for its own, and has nothing to prune or to revert."""
    consul.register(f"{prefix}web", f"{prefix}vm-1", "10.77.6.1", 80)
    labels, notes = MARKS["argocd-controller"]
    path = f"{SERVICES.format(namespace=namespace)}/web"
    git = {
        "apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "protocol": "TCP"}]},
        "metadata": {
            "name": "web", "labels": {**labels, "consul-bridge/mirror": "true"},
            "annotations": {**notes, "consul-bridge/service": f"{prefix}web"},
        },
    }  # fmt: skip
    kube.apply(path, git, "argocd-controller")
    grants: Json = {"annotated": [{"services": [f"{prefix}*"], "namespaces": [namespace]}]}
    assert sync(lab, tmp_path, namespace, [], **grants).json["summary"]["create"] == 2
    assert mirrored(kube, namespace) == {"web": ["10.77.6.1:80 ready"]}
    before = stored(kube, namespace, "web")
    assert {entry["manager"] for entry in before[path]["managedFields"]} == {"argocd-controller"}
    for place, metadata in before.items():
        marks = {**metadata["labels"], **metadata.get("annotations", {})}
        assert (place == path) is bool({**labels, **notes}.keys() & marks.keys())
    kube.apply(path, git, "argocd-controller", force=False)
    assert sync(lab, tmp_path, namespace, [], **grants).json["summary"]["unchanged"] == 2
    assert stored(kube, namespace, "web") == before
