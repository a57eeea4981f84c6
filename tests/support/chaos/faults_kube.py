"""What goes wrong with Kubernetes and on the way to it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import trustme

from tests.support.chaos.faults import (
    EITHER,
    KUBE_DOWN,
    KUBE_UP_0,
    NOT_READY,
    READY,
    TO_KUBE,
    Answering,
    FailedOver,
    Fault,
    Metric,
    Paused,
    Reason,
    answering,
    log,
    nothing,
    simple,
    toxic,
    trickle,
)
from tests.support.chaos.harness import DOOMED, NAMESPACE, Harness, create_namespace, wait_for
from tests.support.chaos.stub import Answer, Rule, Stub
from tests.support.lab import wait_until
from tests.support.raw import ENDPOINTS, SERVICES, SLICES, RawClient, RawKube, UnexpectedAnswerError

DOWN = (KUBE_DOWN, KUBE_UP_0)
IN_TIME = (*DOWN, Reason("in time"))
WRITE_FAILED = log("write failed")


class KubePause(Paused):
    """A stalled API server."""

    name = "kube-pause"
    what = (
        "SIGSTOP of kube-apiserver for 1 to 15 s (to 60 s in `make chaos`), and longer than a request may take: "
        "connections are accepted, not answered"
    )
    shows = IN_TIME

    server = "lab.apiserver"


def etcd_again(harness: Harness) -> None:
    """etcd is started or goes on, and the API server is well again."""
    etcd = harness.lab.etcd
    if etcd.running:
        etcd.resume()
    else:
        etcd.start()
    harness.lab.apiserver.wait_ready()


def alarm(harness: Harness, action: str) -> None:
    """ACTIVATE or DEACTIVATE etcd's alarm of no space."""
    with RawClient(harness.lab.etcd.url, timeout_seconds=10) as etcd:
        members = etcd.json("POST", "/v3/cluster/member/list", {})["members"]
        body = {"action": action, "memberID": members[0]["ID"], "alarm": "NOSPACE"}
        etcd.json("POST", "/v3/maintenance/alarm", body)


class KubeFailover(FailedOver):
    """A balancer that forgets; the bridge writes again soon."""

    name = "kube-failover"
    what = (
        "a balancer in front of the API server fails over: bytes of open connections lead nowhere and neither side "
        "closes them, new connections work; the bridge writes again within 12 s, before the fault is healed"
    )
    shows = (log("write failed", "in time"), Metric("consul_bridge_errors_total", "grows"))
    proxy = TO_KUBE

    def during(self, harness: Harness) -> Iterator[str]:
        if not wait_for(lambda: bool(harness.observer.writes_since(self.at + 1.0)), self.at + 12.0 - time.time()):
            yield "nothing was written for 12 s after the failover"
        yield from super().during(harness)


# --------------------------------------------------------------------------- HTTP


class Stubbed(Answering):
    """A stub in front of the API server, with a certificate of the cluster's own authority."""

    proxy = TO_KUBE

    def certificate(self, harness: Harness) -> tuple[Path, Path]:
        """Certificate and key of the stub."""
        return harness.lab.files["server.pem"], harness.lab.files["server.key"]

    def stub(self, harness: Harness, rule: Rule) -> Stub:
        certificate = self.certificate(harness)
        return Stub(harness.lab.apiserver.url, rule, ca_file=harness.lab.ca_file, certificate=certificate)


def status(code: int, reason: str, message: str, **headers: str) -> Answer:
    """An answer of the API server that is not a yes."""
    body = {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code,
    }  # fmt: skip
    return Answer(code, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


def is_write(method: str) -> bool:
    """Whether a request changes something."""
    return method in ("PATCH", "PUT", "POST", "DELETE")


def conflicts(rng: random.Random) -> Rule:
    """Another client always gets there first."""
    mine = random.Random(rng.random())  # how often it is asked is not the same when a seed is played again

    def decide(method: str, path: str) -> Answer | None:
        if is_write(method) and mine.random() < 0.67:
            return status(409, "Conflict", "the object has been modified; please apply your changes again")
        return None

    return decide


def too_old(_rng: random.Random) -> Rule:
    """A watch cache that was compacted away."""
    gone = json.loads(status(410, "Expired", "too old resource version: 1 (2)").body)
    event = json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
    return lambda _method, path: Answer(200, event, {"Content-Type": "application/json"}) if "watch=1" in path else None


def too_many(_rng: random.Random) -> Rule:
    """Priority and fairness, or a proxy, that sheds load."""
    answer = status(429, "TooManyRequests", "too many requests, please try again later", **{"Retry-After": "1"})
    return lambda method, _path: answer if is_write(method) else None


def broken(rng: random.Random) -> Rule:
    """A control plane on its knees."""
    mine = random.Random(rng.random())  # as above

    def decide(_method: str, _path: str) -> Answer:
        code = mine.choice((500, 502, 503, 504))
        if code == 502:
            return Answer(code, b"<html><body>Bad Gateway</body></html>", {"Content-Type": "text/html"})
        return status(code, "InternalError", "etcdserver: request timed out")

    return decide


class KubeCertificate(Stubbed):
    """A man in the middle, or a cluster that was rebuilt."""

    name = "kube-certificate"
    what = "the API server's certificate is one of another authority"
    shows = (*DOWN, Reason("is not trusted"))
    readiness = NOT_READY
    settle_seconds = 40.0
    why_slow = "watches retry permanent errors after 30 s"

    def certificate(self, harness: Harness) -> tuple[Path, Path]:
        made = trustme.CA().issue_cert("127.0.0.1")
        files = harness.lab.folder / "other.pem", harness.lab.folder / "other.key"
        files[0].write_bytes(made.cert_chain_pems[0].bytes())
        files[1].write_bytes(made.private_key_pem.bytes())
        return files

    def rule_of(self, rng: random.Random) -> Rule:
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


def revoke(harness: Harness) -> None:
    """A token that is over."""
    with harness.connect_kube() as kube:
        kube.delete(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/bridge")
    harness.to_kube.lead_to(harness.to_kube.upstream)  # watches that are open would go on for minutes


def delete_namespace(harness: Harness) -> None:
    """A user deletes a namespace with all that is in it."""
    harness.fleet.excuse("doomed-1")
    with harness.connect_kube() as kube:
        kube.delete(f"/api/v1/namespaces/{DOOMED}")
        wait_until(lambda: kube.get(f"/api/v1/namespaces/{DOOMED}") is None, 60, "the end of a namespace", 0.1)


def make_namespace(harness: Harness) -> None:
    """And makes it again."""
    with harness.connect_kube() as kube:
        create_namespace(kube, DOOMED)


def edit(harness: Harness) -> None:
    """Others edit and delete what is ours."""
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


FAULTS: Sequence[type[Fault]] = (
    simple(
        "kube-kill", "kill -9 of kube-apiserver, then a restart", (*DOWN, Reason("broke")),
        lambda harness: harness.lab.apiserver.kill(), lambda harness: harness.lab.apiserver.start(),
    ),
    simple(
        "etcd-kill", "kill -9 of etcd, then a restart with its data", DOWN, lambda harness: harness.lab.etcd.kill(),
        etcd_again,
    ),
    KubePause,
    simple(
        "etcd-pause", "SIGSTOP of etcd: writes and lists hang", DOWN, lambda harness: harness.lab.etcd.pause(),
        etcd_again,
    ),
    simple(
        "etcd-no-space", "etcd's alarm NOSPACE: reads work, every write is refused",
        (*DOWN, Reason("space"), Metric("consul_bridge_errors_total", "grows")),
        lambda harness: alarm(harness, "ACTIVATE"), lambda harness: alarm(harness, "DEACTIVATE"),
    ),
    toxic(  # a load balancer that restarts
        "kube-resets", "every connection to the API server is reset after 50 ms", DOWN, TO_KUBE, "reset_peer",
        timeout=50,
    ),
    # a network that went away silently
    toxic(
        "kube-half-open", "connections to the API server stay open, and no byte comes through", IN_TIME, TO_KUBE,
        "timeout", timeout=0,
    ),
    trickle("kube-trickle", "the API server", TO_KUBE, IN_TIME),
    KubeFailover,
    answering(
        Stubbed, "kube-409", "two of three writes are answered 409: the object changed meanwhile",
        (WRITE_FAILED, Metric('consul_bridge_errors_total{kind="stale"}', "grows")), conflicts, READY,
    ),
    answering(
        Stubbed, "kube-410", "every watch ends at once with 410: its position is too old",
        (KUBE_DOWN, Reason("too old")), too_old, EITHER,
    ),
    answering(
        Stubbed, "kube-429",
        "the API server answers 429 with Retry-After: 1 to every write, for longer than a moment",
        (
            WRITE_FAILED, *DOWN, Metric('consul_bridge_errors_total{kind="throttled"}', "grows"),
            Reason("asks us to be slower (429)"),
        ),
        too_many,
    ),
    answering(Stubbed, "kube-5xx", "the API server answers 500, 502, 503 or 504 to everything", DOWN, broken),
    KubeCertificate,
    KubeAdmission,
    KubeQuota,
    simple(
        "kube-token-expired",
        "the token is refused (its ServiceAccount is gone); later a new one is in the kubeconfig",
        (*DOWN, Reason("refuses our credentials (401)")), revoke, Harness.give_kube_token,
        settle_seconds=40.0, why_slow="watches retry permanent errors after 30 s",
    ),
    simple(
        "kube-namespace-deleted", "a namespace with mirrored services is deleted; later it is there again, empty",
        (log("write failed", DOOMED),), delete_namespace, make_namespace, READY,
        settle_seconds=15.0, why_slow="what is refused is asked again after `retry.permanent`, here at most 5 s",
    ),
    simple(
        "kube-edits", "others empty, edit and delete our Endpoints, EndpointSlices and Services",
        (log("written", "c-1"), log("written", "c-3"), log("written", "slice-2")), edit, nothing, READY,
    ),
)  # fmt: skip
