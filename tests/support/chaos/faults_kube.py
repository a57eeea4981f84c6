"""What goes wrong with Kubernetes and on the way to it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import trustme

from tests.support.chaos.faults import EITHER, KUBE_DOWN, KUBE_UP_0, NOT_READY, READY, Fault, Metric, Reason, log
from tests.support.chaos.harness import DOOMED, NAMESPACE, Harness, create_namespace, wait_for
from tests.support.chaos.stub import Answer, Rule, Stub
from tests.support.lab import wait_until
from tests.support.lab.failover import Failover
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawClient, RawKube, UnexpectedAnswerError

WRITE_FAILED = log("write failed")


class KubeKill(Fault):
    """A crash."""

    name = "kube-kill"
    what = "kill -9 of kube-apiserver, then a restart"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("broke"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.lab.apiserver.kill()

    def heal(self, harness: Harness) -> None:
        harness.lab.apiserver.start()


class EtcdKill(Fault):
    """Kubernetes' memory crashes: the API server lives and answers 5xx, or nothing."""

    name = "etcd-kill"
    what = "kill -9 of etcd, then a restart with its data"
    shows = (KUBE_DOWN, KUBE_UP_0)
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.lab.etcd.kill()

    def heal(self, harness: Harness) -> None:
        harness.lab.etcd.start()
        harness.lab.apiserver.wait_ready()


class KubePause(Fault):
    """A stalled API server."""

    name = "kube-pause"
    what = (
        "SIGSTOP of kube-apiserver for 1 to 15 s (to 60 s in `make chaos`), and longer than a request may take: "
        "connections are accepted, not answered"
    )
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("in time"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self.hold_seconds = rng.uniform(1.0, harness.longest_pause)
        harness.lab.apiserver.pause()

    def heal(self, harness: Harness) -> None:
        harness.lab.apiserver.resume()


class EtcdPause(Fault):
    """A stalled disk below etcd."""

    name = "etcd-pause"
    what = "SIGSTOP of etcd: writes and lists hang"
    shows = (KUBE_DOWN, KUBE_UP_0)
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.lab.etcd.pause()

    def heal(self, harness: Harness) -> None:
        harness.lab.etcd.resume()
        harness.lab.apiserver.wait_ready()


class EtcdFull(Fault):
    """etcd is out of space: it raises an alarm and takes no writes until somebody has made room."""

    name = "etcd-no-space"
    what = "etcd's alarm NOSPACE: reads work, every write is refused"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("space"), Metric("consul_bridge_errors_total", "grows"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._alarm(harness, "ACTIVATE")

    def heal(self, harness: Harness) -> None:
        self._alarm(harness, "DEACTIVATE")

    @staticmethod
    def _alarm(harness: Harness, action: str) -> None:
        with RawClient(harness.lab.etcd.url, timeout_seconds=10) as etcd:
            members = etcd.json("POST", "/v3/cluster/member/list", {})["members"]
            body = {"action": action, "memberID": members[0]["ID"], "alarm": "NOSPACE"}
            etcd.json("POST", "/v3/maintenance/alarm", body)


# --------------------------------------------------------------------------- bytes


class _KubeToxic(Fault):
    """A toxic on the way to the API server."""

    kind: ClassVar[str]
    attributes: ClassVar[dict[str, int]] = {}

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.to_kube.add(self.kind, **self.attributes)

    def heal(self, harness: Harness) -> None:
        harness.to_kube.heal()


class KubeResets(_KubeToxic):
    """A load balancer that restarts."""

    name = "kube-resets"
    what = "every connection to the API server is reset after 50 ms"
    shows = (KUBE_DOWN, KUBE_UP_0)
    readiness = NOT_READY
    kind = "reset_peer"
    attributes: ClassVar[dict[str, int]] = {"timeout": 50}


class KubeHalfOpen(_KubeToxic):
    """A network that went away silently."""

    name = "kube-half-open"
    what = "connections to the API server stay open, and no byte comes through"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("in time"))
    readiness = NOT_READY
    kind = "timeout"
    attributes: ClassVar[dict[str, int]] = {"timeout": 0}


class KubeTrickle(Fault):
    """A middlebox that is overwhelmed: bytes come, one by one, and each comes in time."""

    name = "kube-trickle"
    what = "answers of the API server, headers first, come one byte every 0.2 s"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("in time"))
    readiness = NOT_READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        attributes = {"average_size": 1, "size_variation": 0, "delay": 200_000}
        harness.to_kube.add_to(("downstream",), "slicer", attributes)

    def heal(self, harness: Harness) -> None:
        harness.to_kube.heal()


class KubeFailover(Fault):
    """A virtual address that moves to another API server, a balancer that forgets."""

    name = "kube-failover"
    what = (
        "a balancer in front of the API server fails over: bytes of open connections lead nowhere and neither side "
        "closes them, new connections work; the bridge writes again within 12 s, before the fault is healed"
    )
    shows = (log("write failed", "in time"), Metric("consul_bridge_errors_total", "grows"))
    readiness = EITHER

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._relay = Failover(harness.to_kube.upstream)
        harness.to_kube.lead_to(self._relay.address)
        wait_for(harness.bridge.ready, 20)
        wait_for(lambda: False, 6.0)  # writers and watches have their connections
        self._relay.fail_over()
        self._at = time.time()

    def during(self, harness: Harness) -> Iterator[str]:
        if not wait_for(lambda: bool(harness.observer.writes_since(self._at + 1.0)), self._at + 12.0 - time.time()):
            yield "nothing was written for 12 s after the failover"
        if not wait_for(harness.bridge.ready, self._at + 20.0 - time.time()):
            yield f"20 s after the failover /readyz says {harness.bridge.readiness()}"

    def heal(self, harness: Harness) -> None:
        harness.to_kube.heal()
        self._relay.close()


# --------------------------------------------------------------------------- HTTP


class _KubeStub(Fault):
    """A stub with a certificate of the cluster's own authority that answers by a rule of the fault's own."""

    def rule(self, rng: random.Random) -> Rule:
        """What the stub does."""
        raise NotImplementedError

    def certificate(self, harness: Harness) -> tuple[Path, Path]:
        """Certificate and key of the stub."""
        return harness.lab.files["server.pem"], harness.lab.files["server.key"]

    def inject(self, harness: Harness, rng: random.Random) -> None:
        self._stub = Stub(
            harness.lab.apiserver.url,
            self.rule(rng),
            ca_file=harness.lab.ca_file,
            certificate=self.certificate(harness),
        )
        harness.to_kube.lead_to(self._stub.address)

    def heal(self, harness: Harness) -> None:
        harness.to_kube.heal()
        self._stub.close()


def status(code: int, reason: str, message: str, **headers: str) -> Answer:
    """An answer of the API server that is not a yes."""
    body = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code,
    }  # fmt: skip
    return Answer(code, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


def is_write(method: str) -> bool:
    """Whether a request changes something."""
    return method in ("PATCH", "PUT", "POST", "DELETE")


class Kube409(_KubeStub):
    """Somebody else always gets there first."""

    name = "kube-409"
    what = "two of three writes are answered 409: the object changed meanwhile"
    shows = (WRITE_FAILED, Metric('consul_bridge_errors_total{kind="stale"}', "grows"))
    readiness = READY

    def rule(self, rng: random.Random) -> Rule:
        mine = random.Random(rng.random())  # how often it is asked is not the same when a seed is played again

        def decide(method: str, path: str) -> Answer | None:
            if is_write(method) and mine.random() < 0.67:
                return status(409, "Conflict", "the object has been modified; please apply your changes again")
            return None

        return decide


class Kube410(_KubeStub):
    """A watch cache that was compacted away."""

    name = "kube-410"
    what = "every watch ends at once with 410: its position is too old"
    shows = (KUBE_DOWN, Reason("too old"))
    readiness = EITHER

    def rule(self, rng: random.Random) -> Rule:
        gone = json.loads(status(410, "Expired", "too old resource version: 1 (2)").body)
        event = json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
        return lambda _method, path: (
            Answer(200, event, {"Content-Type": "application/json"}) if "watch=1" in path else None
        )


class Kube429(_KubeStub):
    """Priority and fairness, or a proxy, that sheds load."""

    name = "kube-429"
    what = "the API server answers 429 with Retry-After: 1 to every write, for longer than a moment"
    shows = (
        WRITE_FAILED, KUBE_DOWN, KUBE_UP_0, Metric('consul_bridge_errors_total{kind="throttled"}', "grows"),
        Reason("asks us to be slower (429)"),
    )  # fmt: skip
    readiness = NOT_READY

    def rule(self, rng: random.Random) -> Rule:
        answer = status(429, "TooManyRequests", "too many requests, please try again later", **{"Retry-After": "1"})
        return lambda method, _path: answer if is_write(method) else None


class Kube5xx(_KubeStub):
    """A control plane on its knees."""

    name = "kube-5xx"
    what = "the API server answers 500, 502, 503 or 504 to everything"
    shows = (KUBE_DOWN, KUBE_UP_0)
    readiness = NOT_READY

    def rule(self, rng: random.Random) -> Rule:
        mine = random.Random(rng.random())  # as above

        def decide(_method: str, _path: str) -> Answer:
            code = mine.choice((500, 502, 503, 504))
            if code == 502:
                return Answer(code, b"<html><body>Bad Gateway</body></html>", {"Content-Type": "text/html"})
            return status(code, "InternalError", "etcdserver: request timed out")

        return decide


class KubeCertificate(_KubeStub):
    """A man in the middle, or a cluster that was rebuilt."""

    name = "kube-certificate"
    what = "the API server's certificate is one of another authority"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("is not trusted"))
    readiness = NOT_READY
    settle_seconds = 40.0
    why_slow = "watches retry permanent errors after 30 s"

    def certificate(self, harness: Harness) -> tuple[Path, Path]:
        made = trustme.CA().issue_cert("127.0.0.1")
        files = harness.lab.folder / "other.pem", harness.lab.folder / "other.key"
        files[0].write_bytes(made.cert_chain_pems[0].bytes())
        files[1].write_bytes(made.private_key_pem.bytes())
        return files

    def rule(self, rng: random.Random) -> Rule:
        return lambda _method, _path: None


# --------------------------------------------------------------------------- the cluster's own objects


class KubeAdmission(Fault):
    """A policy that does not like one object."""

    name = "kube-admission"
    what = "a ValidatingAdmissionPolicy refuses every change of one Endpoints object (`c-0`); other objects go on"
    shows = (log("write failed", "c-0"), Metric('consul_bridge_errors_total{kind="permanent"}', "grows"))
    readiness = READY
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/chaos"
    binding = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/chaos"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "chaos"}}
        with harness.connect_kube() as kube:
            kube.apply(self.path, {
                **head, "kind": "ValidatingAdmissionPolicy",
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                        "resources": ["endpoints"],
                    }]},
                    "validations": [{"expression": "object.metadata.name != 'c-0'", "message": "not c-0"}],
                },
            })  # fmt: skip
            kube.apply(self.binding, {
                **head, "kind": "ValidatingAdmissionPolicyBinding",
                "spec": {"policyName": "chaos", "validationActions": ["Deny"]},
            })  # fmt: skip
            wait_for(lambda: self._refuses(kube), 10)
        # among a thousand services this one would not change by itself in time
        sick = harness.fleet.expected()["c-0"].not_ready
        harness.fleet.set_status("c-0", "passing" if sick else "critical")

    def _refuses(self, kube: RawKube) -> bool:
        path = f"{ENDPOINTS.format(namespace=NAMESPACE)}/c-0?dryRun=All"
        try:
            kube.json("PATCH", path, {"metadata": {"labels": {"asked": "by-chaos"}}}, "application/merge-patch+json")
        except UnexpectedAnswerError:
            return True
        return False

    def heal(self, harness: Harness) -> None:
        with harness.connect_kube() as kube:
            kube.delete(self.binding)
            kube.delete(self.path)


class KubeQuota(Fault):
    """A namespace that is full."""

    name = "kube-quota"
    what = "a ResourceQuota allows no further Service; a new service comes"
    shows = (log("write failed", "quota"), Metric('consul_bridge_errors_total{kind="permanent"}', "grows"))
    readiness = READY
    settle_seconds = 15.0
    why_slow = "what is refused is asked again after `retry.permanent`, here at most 5 s"
    path = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/chaos"
    number = 0

    def inject(self, harness: Harness, rng: random.Random) -> None:
        KubeQuota.number += 1
        with harness.connect_kube() as kube:
            kube.apply(self.path, {
                "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "chaos"},
                "spec": {"hard": {"count/services": "1"}},
            })  # fmt: skip
            full = {"status": {"hard": {"count/services": "1"}, "used": {"count/services": "1"}}}
            kube.json("PATCH", f"{self.path}/status", full, "application/merge-patch+json")
        harness.fleet.add(f"c-quota-{self.number}", 2)

    def heal(self, harness: Harness) -> None:
        with harness.connect_kube() as kube:
            kube.delete(self.path)


class KubeToken(Fault):
    """A token that is over."""

    name = "kube-token-expired"
    what = "the token is refused (its ServiceAccount is gone); later a new one is in the kubeconfig"
    shows = (KUBE_DOWN, KUBE_UP_0, Reason("refuses our credentials (401)"))
    readiness = NOT_READY
    settle_seconds = 40.0
    why_slow = "watches retry permanent errors after 30 s"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        with harness.connect_kube() as kube:
            kube.delete(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/bridge")
        harness.to_kube.lead_to(harness.to_kube.upstream)  # watches that are open would go on for minutes

    def heal(self, harness: Harness) -> None:
        harness.give_kube_token()


class KubeNamespace(Fault):
    """Somebody deletes a namespace with all that is in it, and makes it again."""

    name = "kube-namespace-deleted"
    what = "a namespace with mirrored services is deleted; later it is there again, empty"
    shows = (log("write failed", DOOMED),)
    readiness = READY
    settle_seconds = 15.0
    why_slow = "what is refused is asked again after `retry.permanent`, here at most 5 s"

    def inject(self, harness: Harness, rng: random.Random) -> None:
        harness.fleet.excuse("doomed-1")
        with harness.connect_kube() as kube:
            kube.delete(f"/api/v1/namespaces/{DOOMED}")
            wait_until(lambda: kube.get(f"/api/v1/namespaces/{DOOMED}") is None, 60, "the end of a namespace", 0.1)

    def heal(self, harness: Harness) -> None:
        with harness.connect_kube() as kube:
            create_namespace(kube, DOOMED)


class KubeEdits(Fault):
    """Others who edit and delete what is ours."""

    name = "kube-edits"
    what = "others empty, edit and delete our Endpoints, EndpointSlices and Services"
    shows = (log("written", "c-1"), log("written", "c-3"), log("written", "slice-2"))
    readiness = READY

    def inject(self, harness: Harness, rng: random.Random) -> None:
        endpoints, services = ENDPOINTS.format(namespace=NAMESPACE), SERVICES.format(namespace=NAMESPACE)
        slices = SLICES.format(namespace=NAMESPACE)
        for name in ("c-1", "c-3", "slice-2"):
            harness.fleet.excuse(name)
        with harness.connect_kube() as kube:
            merge = "application/merge-patch+json"
            kube.json("PATCH", f"{endpoints}/c-1", {"subsets": []}, merge)
            kube.json("PATCH", f"{services}/c-1", {"spec": {"ports": [{"port": 9, "name": "odd"}]}}, merge)
            kube.delete(f"{endpoints}/c-3")
            kube.delete(f"{services}/c-3")
            selector = "labelSelector=kubernetes.io/service-name=slice-2"
            first, *others = [s["metadata"]["name"] for s in kube.json("GET", f"{slices}?{selector}")["items"]]
            kube.json("PATCH", f"{slices}/{first}", {"endpoints": []}, merge)
            for name in others:
                kube.delete(f"{slices}/{name}")

    def heal(self, harness: Harness) -> None:
        """They have stopped."""


FAULTS: Sequence[type[Fault]] = (
    KubeKill, EtcdKill, KubePause, EtcdPause, EtcdFull, KubeResets, KubeHalfOpen, KubeTrickle,
    KubeFailover, Kube409, Kube410, Kube429, Kube5xx,
    KubeCertificate, KubeAdmission, KubeQuota, KubeToken, KubeNamespace, KubeEdits,
)  # fmt: skip
