"""The bridge in one namespace of a cluster with pods, and clients that ask what it fills."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.lab import manifests
from tests.support.lab.pods.cluster import Cluster
from tests.support.lab.pods.node import Node
from tests.support.lab.servers import wait_until
from tests.support.lab.traffic_testbed import LOAD, Load
from tests.support.raw import SLICES

Json = dict[str, Any]
DEPLOYMENT = f"deployment/{manifests.NAME}"
SELECTOR = f"app.kubernetes.io/name={manifests.NAME}"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
ROLLOUT_SECONDS = 120.0


class Installation:
    """One installation. `install` it first; a context it is not: it goes with its cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.folder = cluster.lab.folder / f"overlay-{namespace}"

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run kubectl in the namespace; what it printed."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin, check=check)

    def make_namespace(self) -> None:
        """The namespace, with the restricted Pod Security Standard enforced."""
        self.cluster.kubectl("create", "namespace", self.namespace)
        self.cluster.kubectl("label", "namespace", self.namespace, RESTRICTED)

    def apply(
        self, components: Sequence[str] = (), rules: str | None = None, further: Mapping[str, object] | None = None
    ) -> None:
        """Apply the base with components, as an overlay of a user's own; `further` lines of its kustomization.yaml."""
        manifests.overlay(self.folder, self.namespace, components, rules=rules, consul=self.cluster.consul_address)
        if further:
            file = self.folder / "kustomization.yaml"
            file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **further}))
        self.kubectl("apply", "--server-side", "--kustomize", str(self.folder))

    def install(
        self, components: Sequence[str] = (), rules: str | None = None, further: Mapping[str, object] | None = None
    ) -> float:
        """The same, and wait; the seconds until every replica is ready."""
        began = time.monotonic()
        self.apply(components, rules, further)
        self.await_rollout()
        return time.monotonic() - began

    def await_rollout(self, within: float = ROLLOUT_SECONDS) -> float:
        """Wait until all replicas are new and ready; the seconds it took."""
        began = time.monotonic()
        self.kubectl("rollout", "status", DEPLOYMENT, f"--timeout={within:.0f}s")
        return time.monotonic() - began

    def rolled_out(self) -> bool:
        """Whether all replicas are new and ready."""
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{manifests.NAME}"
        with self.cluster.lab.raw_kube() as kube:
            found = kube.json("GET", path)
        status, wanted = found["status"], found["spec"]["replicas"]
        counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
        return status.get("observedGeneration") == found["metadata"]["generation"] and counts == [wanted] * 3

    # ------------------------------------------------------------------ replicas

    def pods(self, selector: str = SELECTOR) -> list[Json]:
        """The pods of the bridge that are not about to go."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={selector.replace('=', '%3D')}"
        with self.cluster.lab.raw_kube() as kube:
            found: list[Json] = kube.json("GET", path)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def pod(self, name: str) -> Json:
        """One of them."""
        return next(pod for pod in self.pods() if pod["metadata"]["name"] == name)

    def ready_pods(self) -> list[str]:
        """Names of those that are ready."""
        return sorted(pod["metadata"]["name"] for pod in self.pods() if is_ready(pod))

    def await_ready_pods(self, count: int, within: float = 90.0) -> float:
        """Wait until so many are ready; the seconds it took."""
        return self._timed(lambda: len(self.ready_pods()) == count, within, f"{count} ready pods")

    def leaders(self) -> dict[str, str]:
        """The pod that holds each shard's Lease."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
        with self.cluster.lab.raw_kube() as kube:
            leases = kube.json("GET", f"{path}?labelSelector=consul-bridge%2Flease%3Dshard")["items"]
        holders = {lease["metadata"]["name"]: lease["spec"].get("holderIdentity") or "" for lease in leases}
        return {name: holder.partition("_")[0] for name, holder in holders.items()}

    def leader(self) -> str:
        """The pod that leads, where there is one shard; waits while none does, as after a rollout."""

        found: set[str] = set()

        def leads() -> bool:
            found.clear()
            found.update(set(self.leaders().values()) & {pod["metadata"]["name"] for pod in self.pods()})
            return len(found) == 1

        wait_until(leads, 60, "one pod leading", 0.1)
        return found.pop()

    def identity(self) -> str:
        """Who leads, told apart from its successor in the same pod."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
        with self.cluster.lab.raw_kube() as kube:
            (lease,) = kube.json("GET", f"{path}?labelSelector=consul-bridge%2Flease%3Dshard")["items"]
        return lease["spec"].get("holderIdentity") or ""

    def await_another_leader(self, than: str, within: float = 60.0) -> float:
        """Wait until another replica leads than this identity; the seconds it took."""
        return self._timed(lambda: self.identity() not in ("", than), within, "another leader")

    def signal_leader(self, name: str) -> str:
        """Send the leader's process a signal (KILL, STOP) on its node; the pod's name."""
        leader = self.leader()
        pod = self.pod(leader)
        node = self.cluster.node_of(pod["spec"]["nodeName"])
        container = pod["status"]["containerStatuses"][0]["containerID"]
        node.run("kill", f"-{name}", str(node.process_of(container)))
        return leader

    # ------------------------------------------------------------------ what it fills

    def addresses(self, service: str) -> set[str]:
        """The ready addresses of a Service, as kube-proxy finds them."""
        path = SLICES.format(namespace=self.namespace)
        with self.cluster.lab.raw_kube() as kube:
            slices = kube.json("GET", f"{path}?labelSelector=kubernetes.io/service-name%3D{service}")["items"]
        return {
            address
            for found in slices
            for endpoint in found.get("endpoints") or []
            if endpoint["conditions"].get("ready")
            for address in endpoint["addresses"]
        }

    def await_addresses(self, service: str, count: int, within: float = 60.0) -> float:
        """Wait until so many addresses are ready; the seconds it took."""
        return self._timed(lambda: len(self.addresses(service)) == count, within, f"{count} addresses of {service}")

    def await_rules(self, service: str, address: str, *, there: bool, within: float = 30.0) -> float:
        """Wait until every node's kube-proxy sends, or does not send, new connections to an address; the seconds."""

        def known(node: Node) -> bool:
            rules = node.host.run("nft", "list", "table", "ip", "kube-proxy").stdout
            chain = re.search(rf"chain service-\w+-{self.namespace}/{service}/\S+ \{{\n(.*)\n", rules)
            return chain is not None and re.search(rf"\b{re.escape(address)}\b", chain[1]) is not None

        nodes = self.cluster.nodes
        word = "in" if there else "out of"
        return self._timed(
            lambda: all(known(node) is there for node in nodes), within, f"{address} being {word} the nodes' rules"
        )

    def client(self, host: str, port: int, rate: float, name: str = "client") -> Load:
        """A pod that asks by name; what it gets."""
        script = f"--from-file={LOAD}"
        text = self.kubectl("create", "configmap", "load", script, "--dry-run=client", "--output=yaml")
        self.cluster.apply(text, "--namespace", self.namespace)
        words = {
            "IN_NAMESPACE": self.namespace, "CLIENT_NAME": name, "ASKED_HOST": host, "ASKED_PORT": str(port),
            "ASKED_RATE": str(rate),
            "LAST_NODE": self.cluster.nodes[-1].name,
        }  # fmt: skip
        template = Path(__file__).with_name("client.yaml").read_text()
        for word, value in words.items():
            template = template.replace(word, value)
        self.cluster.apply(template)
        self.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
        return Load(lambda: self.cluster.log_of(self.namespace, name))

    def python(self, pod: str, code: str) -> str:
        """Run Python in a pod's container; what it printed."""
        return self.kubectl("exec", pod, "--", "python", "-S", "-c", code)

    @staticmethod
    def _timed(condition: Any, within: float, what: str) -> float:
        began = time.monotonic()
        wait_until(condition, within, what, 0.1)
        return time.monotonic() - began


def is_ready(pod: Json) -> bool:
    """Whether its Ready condition says so."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


__all__ = ["DEPLOYMENT", "RESTRICTED", "SELECTOR", "Installation", "is_ready"]
