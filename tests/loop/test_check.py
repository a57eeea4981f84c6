"""`bridge check` and users' Services: what they ask for, and the rights that the chosen work really needs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.controller.controller import Controller
from bridge.core import guard
from bridge.core.annotated import Annotated, Grant
from bridge.core.model import Adopt, Destination, InstanceRules, Output, Policy, Rule
from bridge.core.reasons import Code, code_of
from bridge.errors import ForbiddenError
from bridge.kube import informer
from bridge.oneshot.check import check
from bridge.oneshot.inspection import explain_once, status_once
from bridge.oneshot.probe import Probe
from bridge.oneshot.sync import sync_once
from bridge.report import Report, exit_status
from bridge.retry import RetryPolicy
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.consul import Fault as ConsulFault
from tests.support.fakes.kube import FakeKube, Fault
from tests.support.options import consul_config, kube_config, sync_options
from tests.support.running import quick_options, running

Json = dict[str, Any]
QUICK = RetryPolicy(initial_seconds=0.02, max_seconds=0.1, attempts=2)


class Both:
    """The two sides."""

    def __init__(self, consul: FakeConsul, kube: FakeKube, folder: Path) -> None:
        self.consul, self.kube = consul, kube
        self.sides: Json = {
            "consul": consul_config(address=consul.address),
            "kube": kube_config(kubeconfig=kube.kubeconfig(folder)),
        }

    def person(self, name: str, namespace: str = "default", annotations: Json | None = None, **spec: Any) -> None:
        """A user's Service that asks to be filled."""
        self.kube.ask(name, namespace, spec, **annotations or {})

    def check(self, *rules: Rule, **options: Any) -> dict[str, tuple[str, str]]:
        """State and text of each probe."""
        found = check(
            self.sides["consul"], self.sides["kube"], lambda: rules, rules, options=sync_options(retry=QUICK, **options)
        )
        return {p.name: (p.state, f"{p.detail} -> {p.remedy}") for p in found}

    def sync(self, *rules: Rule, **options: Any) -> int:
        """Failures of one pass."""
        return self.report(*rules, **options).summary.failed

    def report(self, *rules: Rule, **options: Any) -> Report:
        """One pass."""
        chosen = sync_options(retry=QUICK, **options)
        return sync_once(**self.sides, rules=rules, options=chosen, stop=threading.Event())


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """A service in Consul, an empty cluster."""
    with FakeConsul() as consul, FakeKube(("default", "apps")) as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        yield Both(consul, kube, tmp_path)


def test_without_a_rule_only_annotated_services_count(both: Both) -> None:
    """No warning that nothing is selected, and the mirroring of their Endpoints is checked."""
    both.person("web", annotations={"output": "endpoints"})
    found = both.check()
    assert found["annotated Services"] == ("ok", "1 asks to be filled -> ")
    assert found["rights in default"] == ("ok", "all that is needed -> ")
    assert found["mirroring"][0] == "warning"
    assert "selected services" not in found


def test_a_service_that_lost_its_labels_is_named(both: Both) -> None:
    """No rule would cover it any more."""
    rule = Rule(services=("web",))
    assert both.sync(rule) == 0
    assert "labels of ownership" not in both.check(rule)
    stored = both.kube.objects["", "services"]["default", "web"]
    del stored.body["metadata"]["labels"]
    state, text = both.check(rule)["labels of ownership"]
    assert (state, "default/web -> kubectl label service NAME" in text) == ("warning", True)


def test_a_name_that_consul_does_not_list_is_a_warning_with_what_looks_like_it(both: Both) -> None:
    """Also where the rule's other names are there; `bridge status` and `bridge explain` say the same."""
    both.consul.register("orders-db", "vm-1", "10.0.0.1", 5432)
    typed = Rule(services=("order-db", "orders-db", "x-*"), name="the database", place="bridge.yaml:2:5")
    found = both.check(typed)
    assert found["selected services"] == ("ok", "1 -> ")
    assert found["names in rules"] == (
        "warning",
        "the database (bridge.yaml:2:5): dc1 lists no service order-db; did you mean orders-db?; the database "
        "(bridge.yaml:2:5): dc1 lists no service x-* -> the name as Consul has it, unless it comes later",
    )
    assert "names in rules" not in both.check(Rule(services=("Orders-DB", "orders-*")), Rule(datacenters=("dc2",)))
    said = "the database (bridge.yaml:2:5): dc1 lists no service order-db; did you mean orders-db?"
    given: Json = {**both.sides, "rules": (typed,), "options": sync_options(retry=QUICK), "stop": threading.Event()}
    assert status_once(**given).notes[-2:] == (said, "the database (bridge.yaml:2:5): dc1 lists no service x-*")
    assert said in explain_once("orders-db", **given).notes
    assert said not in explain_once("web", **given).notes
    given["rules"] = (Rule(name="db", tags=("primory",)),)
    both.consul.register("orders", "vm-1", "10.0.0.1", 5432, Tags=["primary"])
    said = "db: no service that it names has the tag primory; did you mean primary?"
    assert (status_once(**given).notes[-1], explain_once("orders", **given).notes[-1]) == (said, said)


def test_a_pass_names_all_rights_that_it_lacks_at_once(both: Both) -> None:
    """A server refuses one request at a time: what would be refused next is reported as well, with what grants it."""
    for verb, resource in (("create", "services"), ("create", "endpoints"), ("patch", "endpoints")):
        both.kube.forbid("admin", verb, resource)
    report = both.report(Rule(services=("web",)))
    assert ("create", "Service") in {(row.action, row.kind) for row in report.failed}
    (text,) = [row.reason for row in report.warnings if code_of(row.reason) == "rights_missing"]
    assert text.startswith(
        "a pass lacks in namespace default: create services, create endpoints, patch endpoints; apply "
    )
    both.kube.forbid("admin", "list", "services")
    with pytest.raises(ForbiddenError, match="lacks in namespace default: list services, create services, create endp"):
        both.report(Rule(services=("web",)))


def test_a_mistake_in_a_rule_holds_what_a_pass_wrote_before(both: Both) -> None:
    """However small it is; the report names the cause and the command, and a forced pass takes it away."""
    rule = Rule(name="shop", services=("web",), place="bridge.yaml:2:5")
    assert both.sync(rule) == 0
    typed = replace(rule, services=("wbe",))
    report = both.report(typed)
    assert [row.cause for row in report.held] == [Code.HELD_UNMATCHED]
    assert (report.summary.changes, exit_status(report, False, False)) == (0, 3)
    assert "shop (bridge.yaml:2:5): `services` has wbe, which matches nothing" in report.held[0].reason
    assert both.report(typed, force=True).summary.delete == 3


def test_endpoints_in_the_way_that_go_or_are_handed_over_are_noticed_without_a_resync(
    both: Both, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """No watch covers what others have: a Service that a user deletes leaves its Endpoints for a moment."""
    monkeypatch.setattr(informer, "BLOCKED_SECONDS", (0.1, 0.2))
    both.consul.register("far", "vm-9", "10.0.0.9", 80)
    for name in ("web", "far"):
        metadata: Json = {"name": name, "namespace": "default"}
        both.kube.put("endpoints", {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": []})
    with running(Controller(**both.sides, rules=(Rule(),), options=quick_options()), 20) as bridge:
        eventually(lambda: bridge.status()["report"]["summary"]["conflicts"], 2)
        both.kube.remove("endpoints", "default", "web")
        metadata = {"name": "far", "namespace": "default", "annotations": {"consul-bridge/adopt": "true"}}
        both.kube.put("endpoints", {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": []})
        eventually(lambda: both.kube.ready_addresses("default", "web"), ["10.0.0.1"])
        eventually(lambda: both.kube.ready_addresses("default", "far"), ["10.0.0.9"])
        assert bridge.status()["report"]["summary"]["conflicts"] == 0


def _moving(both: Both) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Rules before and after a move of `web`."""
    both.consul.register("far", "vm-9", "10.0.0.9", 80)
    home, away = Destination(namespace="default"), Destination(namespace="apps")
    shop, far = Rule(name="shop", services=("web",)), Rule(name="far", services=("far",))
    return (replace(shop, to=home), replace(far, to=away)), (replace(shop, to=away), replace(far, to=home))


def test_a_target_that_moves_goes_when_the_new_one_is_written_and_not_before(both: Both) -> None:
    """Also where the new one is refused in the writing; then one pass does both, and a dry run says so."""
    before, after = _moving(both)
    assert both.sync(*before) == 0
    both.kube.forbid("admin", "create", "endpoints", "apps")
    report = both.report(*after)
    assert ([row.cause for row in report.held], report.summary.failed) == ([Code.HELD_MOVED], 1)
    assert "elsewhere now, which does not serve it yet: apps/web: it could not be written" in report.held[0].reason
    assert both.kube.ready_addresses("default", "web") == ["10.0.0.1"]
    both.kube.allow()
    assert both.report(*after, dry_run=True).summary.delete == 3
    report = both.report(*after)
    assert (exit_status(report, False, False), report.summary.delete) == (0, 3)
    assert both.kube.ready_addresses("apps", "web") == ["10.0.0.1"]
    assert both.kube.get("services", "default", "web") is None


def test_a_running_bridge_keeps_a_target_that_moves_until_the_new_one_serves(
    both: Both, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """However long that is refused: the grace period alone ends nothing."""
    monkeypatch.setattr(guard, "DOUBT_SECONDS", 0.2)
    before, after = _moving(both)
    assert both.sync(*before) == 0
    both.kube.forbid("admin", "create", "services", "apps")
    bridge = Controller(**both.sides, rules=after, options=quick_options(removal_grace_seconds=0.0))
    with running(bridge, 20):
        eventually(lambda: "which does not serve it yet: apps/web" in str(bridge.ready()[1].get("held")), True)
        assert both.kube.ready_addresses("default", "web") == ["10.0.0.1"]
        both.kube.allow()
        eventually(lambda: both.kube.get("services", "default", "web"), None)
        assert both.kube.ready_addresses("apps", "web") == ["10.0.0.1"]


@pytest.mark.parametrize(("tag", "said"), [("leader", "no instance has the tag"), ("Primary", "but 'primary'")])
def test_a_tag_that_no_instance_has_is_a_warning_beside_its_service_too(both: Both, tag: str, said: str) -> None:
    """It was right when the Service was made; the rule was changed since."""
    both.consul.register("orders", "vm-1", "10.0.0.1", 5432, Tags=["primary"])
    rule = Rule(services=("orders",), tags=("primary",))
    assert both.sync(rule) == 0
    assert said in str(both.check(replace(rule, tags=(tag,))))
    assert said not in str(both.check(rule))


def test_neither_a_rule_nor_a_service_is_a_warning(both: Both) -> None:
    """With both ways out."""
    state, text = both.check()["selected services"]
    assert (state, text) == (
        "warning",
        "none: there is no rule, and no Service in default asks to be filled -> kubectl label service NAME "
        "consul-bridge/mirror=true, or rules in --config; --watch-namespace NAMESPACE for Services elsewhere "
        "('*': everywhere)",
    )


def test_a_role_for_annotated_services_is_enough(both: Both) -> None:
    """The Services are never written, so no verb that writes them is asked for; what is written is."""
    both.person("web")
    for verb in ("create", "patch", "delete"):
        both.kube.forbid("admin", verb, "services")
    assert both.check()["rights in default"][0] == "ok"
    assert both.sync() == 0
    both.kube.forbid("admin", "patch", "endpoints")
    state, text = both.check()["rights in default"]
    assert (state, text.partition(" ->")[0]) == ("failed", "not allowed: patch endpoints")


def test_the_output_that_an_annotation_chooses_needs_its_rights(both: Both) -> None:
    """Endpoints are not written then, and no controller has to mirror them."""
    both.person("web", annotations={"output": "endpointslices"})
    for verb in ("create", "patch", "delete"):
        both.kube.forbid("admin", verb, "endpoints")
    assert both.check()["rights in default"][0] == "ok"
    both.kube.forbid("admin", "create", "endpointslices")
    found = both.check()
    assert ("mirroring" in found, found["rights in default"][0]) == (False, "failed")
    assert "not allowed: create endpointslices -> apply manifests/base/role.yaml" in found["rights in default"][1]


def test_a_grant_for_the_own_datacenter_is_one_where_the_rights_are_looked_at(both: Both) -> None:
    """A Service that names no datacenter asks for the agent's own, and what it asks for needs its rights."""
    both.person("web", annotations={"output": "endpointslices"})
    for verb in ("create", "patch", "delete"):
        both.kube.forbid("admin", verb, "endpoints")
    granted = Annotated(grants=(Grant(datacenters=("dc1",)),))
    assert both.check(annotated=granted)["rights in default"][0] == "ok"


@pytest.mark.parametrize("output", [Output.BOTH, Output.ENDPOINTS])
def test_without_the_right_to_write_slices_it_says_what_goes_on_and_what_that_costs(both: Both, output: Output) -> None:
    """Endpoints alone are mirrored by the control plane; what it cannot mirror needs that right as well."""
    both.consul.register("web", "vm-1", "10.0.0.1", 81, ID="web-2")
    rule = Rule(services=("web",), to=Destination(output=output))
    both.kube.forbid("admin", "create", "endpointslices")
    both.kube.forbid("admin", "delete", "endpointslices")
    found = both.check(rule)
    state, text = found["rights in default"]
    assert state == "warning"
    assert "also need: create endpointslices, delete endpointslices -> apply manifests/base/role.yaml" in text
    assert "has no place for two ports of one name" in text
    assert ("mirroring" in found, "two ports of one name" in found["sizes"][1]) == (True, output is Output.ENDPOINTS)


def test_each_namespace_needs_what_is_done_in_it(both: Both) -> None:
    """A rule goes to one of them, a user asks in the other."""
    both.person("web", namespace="apps")
    both.kube.forbid("admin", "create", "services", "apps")
    rule = Rule(services=("web",))
    both.sides["kube"] = kube_config(kubeconfig=both.sides["kube"].kubeconfig, namespaces=("apps",))
    found = both.check(rule)
    assert (found["rights in apps"][0], found["rights in default"][0]) == ("ok", "ok")
    both.kube.forbid("admin", "create", "services", "default")
    assert both.check(rule)["rights in default"][0] == "failed"


@pytest.mark.parametrize("policy", [Policy.UPSERT_ONLY, Policy.CREATE_ONLY])
def test_a_policy_that_deletes_nothing_needs_no_right_to_delete(both: Both, policy: Policy) -> None:
    """Under `sync` it does."""
    for resource in ("services", "endpoints"):
        both.kube.forbid("admin", "delete", resource)
    rule = Rule(services=("web",))
    assert both.check(rule, policy=policy)["rights in default"][0] == "ok"
    assert both.sync(rule, policy=policy) == 0
    state, text = both.check(rule)["rights in default"]
    assert (state, text.partition(" ->")[0]) == ("failed", "not allowed: delete services, delete endpoints")


def test_services_of_ours_that_no_rule_makes_any_more_must_be_deletable(both: Both) -> None:
    """The rules are gone, what they made is not."""
    both.sync(Rule(services=("web",)))
    for verb in ("create", "patch", "delete"):
        both.kube.forbid("admin", verb, "services")
    state, text = both.check()["rights in default"]
    assert (state, text.partition(" ->")[0]) == ("failed", "not allowed: delete services")


def test_what_a_user_asks_for_is_read(both: Both) -> None:
    """A filter that Consul refuses, and a service past what the output carries."""
    for n in range(1001):
        both.consul.register("crowd", f"vm-c{n}", f"10.1.{n >> 8}.{n & 255}", 80)
    both.person("crowd", annotations={"output": "endpoints"})
    both.person("sliced", annotations={"service": "crowd", "output": "endpointslices"})
    both.person("odd", annotations={"service": "web", "filter": "((("})
    found = both.check()
    assert found["sizes"][0] == "ok"
    assert "what the control plane cannot mirror: crowd (it copies 1000 addresses of one set" in found["sizes"][1]
    assert found["reading web"][0] == "failed"
    assert found["reading web"][1].endswith(" -> consul-bridge/filter of Service default/odd")


def test_what_a_user_asks_for_and_cannot_get_is_a_warning(both: Both) -> None:
    """Each with its reason, on one line."""
    both.person("web")
    both.person("nobody", annotations={"service": "nix"})
    both.person("elsewhere", annotations={"service": "web", "datacenter": "dc9"})
    both.person("selecting", annotations={"service": "web"}, selector={"app": "x"})
    state, text = both.check()["annotated Services"]
    assert (state, text.partition(" ->")[0]) == (
        "warning",
        "default/elsewhere asks for datacenter dc9: only dc1 may be asked (consul.datacenters); default/selecting has "
        "a selector: Kubernetes fills it; default/nobody asks for nix, which dc1 does not list",
    )


def test_a_token_that_sees_no_service_is_the_only_thing_that_is_reported(both: Both) -> None:
    """What is hidden may be there: neither a user's request nor a name in a rule is reported as wrong."""
    both.person("web")
    both.consul.hidden = {"web", "consul"}
    found = both.check(Rule(services=("api",)))
    assert found["token in dc1"][0] == "failed"
    assert found["annotated Services"] == ("ok", "1 asks to be filled -> ")
    assert not {"names in rules", "services of dc1"} & found.keys()


def test_a_listing_that_fails_after_the_probe_of_the_token_is_reported(both: Both) -> None:
    """The services are read as by a pass, once more: what is wrong then is no empty selection alone."""

    def break_it(probe: Probe) -> None:
        if probe.name == "token in dc1":
            both.consul.inject(ConsulFault(status=500), times=100, path="/v1/catalog/services")

    rules, options = (Rule(services=("web",)),), sync_options(retry=QUICK)
    probes = check(both.sides["consul"], both.sides["kube"], lambda: rules, (), break_it, options=options)
    found = {probe.name: probe for probe in probes}
    assert (found["token in dc1"].state, found["services of dc1"].state) == ("ok", "failed")
    assert "answers 500" in found["services of dc1"].detail


def test_a_service_of_a_rule_whose_name_a_user_has_taken_is_reported(both: Both) -> None:
    """The annotated Service wins a name."""
    both.consul.register("other", "vm-2", "10.0.0.2", 80)
    both.person("web", annotations={"service": "other"})
    state, text = both.check(Rule(services=("web",)))["names"]
    assert (state, "web: default/web goes to other in dc1 (the Service is annotated for it)" in text) == (
        "warning", True,
    )  # fmt: skip


def test_a_rule_with_slices_beside_a_user_with_endpoints_needs_both(both: Both) -> None:
    """The union of what both need."""
    both.person("own", annotations={"service": "web"})
    rule = Rule(services=("web",), to=Destination(output=Output.ENDPOINTSLICES))
    for resource in ("endpoints", "endpointslices"):
        both.kube.forbid("admin", "create", resource)
    text = both.check(rule)["rights in default"][1]
    assert text.startswith("not allowed: create endpoints, create endpointslices ->")


def test_the_own_datacenter_is_looked_at_only_where_something_of_it_is_wanted(tmp_path: Path) -> None:
    """All rules are about another one, until a user asks."""
    with FakeConsul(("dc1", "dc2")) as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80, dc="dc2")
        both = Both(consul, kube, tmp_path)
        rule = Rule(services=("web",), datacenters=("dc2",))
        assert [name for name in both.check(rule) if name.startswith("token")] == ["token in dc2"]
        both.person("mine")
        assert [name for name in both.check(rule) if name.startswith("token")] == ["token in dc1", "token in dc2"]


# --------------------------------------------------------------------------- connections


def test_connections_come_in_one_section_with_where_and_as_whom(both: Both) -> None:
    """Each side's address, and the user that the API server takes us for."""
    found = check(both.sides["consul"], both.sides["kube"], lambda: (), (), options=sync_options(retry=QUICK))
    section = {p.name: p.detail for p in found if p.section == "connections"}
    assert section == {
        "consul address": both.consul.address,
        "consul token": "none: requests are anonymous",
        "kubernetes address": both.kube.url,
        "kubernetes user": "admin (groups: system:authenticated)",
        "kubernetes token": f"in kubeconfig {both.sides['kube'].kubeconfig}; no expiry is given",
    }
    places = [n for n, probe in enumerate(found) if probe.section]
    assert places == list(range(places[0], places[0] + len(section)))


def test_a_server_without_self_subject_reviews_is_no_failure(both: Both) -> None:
    """SelfSubjectReview came with Kubernetes 1.28; and a refused one is left to the probes that follow."""
    both.kube.inject(Fault(status=404), times=9, path="selfsubjectreviews")
    found = both.check()
    assert found["kubernetes user"][0] == "ok"
    assert "does not tell" in found["kubernetes user"][1]
    both.kube.clear_faults()
    both.kube.inject(Fault(status=500), times=9, path="selfsubjectreviews")
    assert "kubernetes user" not in both.check()


def test_a_certificate_and_a_token_are_reported_with_their_ends(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A JWT names its end; what is in the kubeconfig and ends soon is a warning, and so is what has ended."""

    def token(seconds: float) -> str:
        claims = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time() + seconds)}).encode()).decode()
        return f"eyJhbGciOiJub25lIn0.{claims.rstrip('=')}.c2ln"

    states = {}
    for name, seconds in (("month", 30 * 86_400), ("days", 3 * 86_400), ("over", -60)):
        both.kube.users[token(seconds)] = "admin"
        path = both.kube.kubeconfig(tmp_path, token(seconds), f"{name}.kubeconfig")
        both.sides["kube"] = kube_config(kubeconfig=path)
        states[name] = both.check()["kubernetes token"]
        assert states[name][1].startswith(f"in kubeconfig {path}; end")
        assert token(seconds) not in str(states)
    assert {name: state for name, (state, _) in states.items()} == {"month": "ok", "days": "warning", "over": "warning"}
    assert states["over"][1].endswith("-> renew it there")


def test_a_proxy_and_an_unverified_server_are_reported(both: Both, tmp_path: Path) -> None:
    """Which way, from which setting; that the server's certificate is not verified is a warning with its remedy."""
    path = Path(both.kube.kubeconfig(tmp_path, name="other.kubeconfig"))
    config = json.loads(path.read_text())
    port = both.kube.port
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "insecure-skip-tls-verify": True,
        "proxy-url": "http://127.0.0.1:1",
    }
    config["clusters"][0]["cluster"] = cluster
    path.write_text(json.dumps(config))
    both.sides["kube"] = kube_config(kubeconfig=str(path))
    found = both.check()
    assert found["kubernetes proxy"] == ("ok", f"http://127.0.0.1:1, from proxy-url of kubeconfig {path} -> ")
    assert found["kubernetes TLS"][0] == "warning"
    assert "name its certificate-authority instead" in found["kubernetes TLS"][1]
    state, text = found["kubernetes reachable"]
    assert state == "failed"
    assert text.endswith(f"-> proxy-url of kubeconfig {path}: the proxy, or an exception from it (NO_PROXY)")


@pytest.mark.parametrize(
    ("server", "fault", "remedy"),
    [
        ("http://127.0.0.1:{port}", Fault(status=401), "renew the credentials of kubeconfig {path}"),
        (
            "http://127.0.0.1:{port}",
            Fault(status=404, body=b"<html>"),
            "server of the cluster in the kubeconfig: its path",
        ),
        ("http://127.0.0.1:{port}", Fault(status=503), "is the API server up, and the way to it open?"),
        ("http://127.0.0.1:{port}", Fault(status=403), "kubectl auth can-i --list"),
        ("https://127.0.0.1:{port}", None, "server of the cluster in the kubeconfig (http or https, and the port)"),
        ("https://no-such-host.invalid", None, "its host name, or DNS"),
    ],
)
def test_the_remedy_fits_what_is_wrong(
    both: Both, tmp_path: Path, server: str, fault: Fault | None, remedy: str
) -> None:
    """Never "start the server" for a certificate, nor "renew the token" for a path."""
    path = Path(both.kube.kubeconfig(tmp_path, name="other.kubeconfig"))
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"] = {"server": server.format(port=both.kube.port)}
    path.write_text(json.dumps(config))
    both.sides["kube"] = kube_config(kubeconfig=str(path))
    if fault is not None:
        both.kube.inject(fault, times=10**6)
    state, text = both.check()["kubernetes reachable"]
    assert state == "failed"
    assert remedy.format(path=path) in text.partition(" -> ")[2]


def test_foreign_services_that_are_in_the_way_are_reported(both: Both) -> None:
    """With why, and what may help; one that may be taken over is none."""
    rule = Rule(services=("web",), to=Destination(namespace="apps"))
    assert "conflicts" not in both.check(rule)
    body = {"metadata": {"name": "web", "namespace": "apps"}, "spec": {"ports": [{"port": 80}]}}
    both.kube.put("services", body)
    state, text = both.check(rule)["conflicts"]
    assert (state, "Service apps/web (for web)" in text, "--adopt" in text) == ("warning", True, True)
    assert "conflicts" not in both.check(rule, adopt=Adopt.UNOWNED)
    both.kube.put("services", {**body, "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}})
    assert "selector" in both.check(rule, adopt=Adopt.UNOWNED)["conflicts"][1]


MISTYPED = (
    Rule(services=("web",), tags=("HTTP",), to=Destination(namespace="apps", name="cased")),
    Rule(services=("web",), tags=("sql",), to=Destination(namespace="apps", name="other")),
    Rule(services=("we*",), tags=("sql",), to=Destination(namespace="apps", name="usual")),
    Rule(services=("web",), to=Destination(namespace="nosuch"), instances=InstanceRules(address="lann")),
)


def test_what_is_mistyped_is_reported_with_what_there_is(both: Both) -> None:
    """Tags and kinds of addresses, by check and by a dry run, which is no failure."""
    both.consul.register(
        "web",
        "vm-1",
        "10.0.0.1",
        80,
        Tags=["http", "blue"],
        TaggedAddresses={"lan": {"Address": "10.1.0.1", "Port": 80}},
    )
    expected = {
        "no instance has the tag 'HTTP', but 'http': Consul tells upper from lower case in tags",
        "no instance has the tag 'sql'; there are blue, http",
        "no instance has an address of the kind 'lann' (`instances.address`); there are lan, node",
    }
    found = both.check(*MISTYPED)
    state, text = found["tags and addresses"]
    assert (state, {line for line in expected if line not in text}) == ("warning", set())
    assert found["namespace nosuch"][0] == "failed"
    report = both.report(*MISTYPED, dry_run=True)
    assert {str(row.reason) for row in report.warnings} == expected
    assert exit_status(report, dry_run=True, exit_code=False) == 0
    assert sum("tag 'sql'" in row.reason for row in report.warnings) == 1  # that of the rule for many services is usual


def test_a_namespace_that_does_not_exist_is_reported_by_a_dry_run(both: Both) -> None:
    """Once, with the remedy; one that exists, or that may not be looked at, is not reported."""
    rules = [Rule(services=("web",), to=Destination(namespace=name)) for name in ("nosuch", "apps")]
    rules = [replace(rule, continues=True) for rule in rules]
    (warning,) = both.report(*rules, dry_run=True).warnings
    assert str(warning.reason) == "namespace nosuch does not exist: kubectl create namespace nosuch"
    both.kube.forbid("admin", "get", "namespaces", "*")
    assert both.report(*rules, dry_run=True).warnings == ()


def test_tags_that_only_some_services_have_are_nothing_to_tell(both: Both) -> None:
    """A rule for many services, and one whose tag an instance has."""
    both.consul.register("web", "vm-1", "10.0.0.1", 80, Tags=["http"])
    rules = (Rule(tags=("sql",)), Rule(services=("web",), tags=("http",)))
    assert "tags and addresses" not in both.check(*rules)
    assert both.report(*rules, dry_run=True).warnings == ()


@pytest.mark.parametrize(
    ("kubernetes", "consul", "told"),
    [
        ("1.37.9", "1.22.5+ent", ("ok", "ok")),
        ("1.29.15", "1.21.5", ("ok", "ok")),
        ("1.26.1", "1.14.3", ("warning", "warning")),
        ("1.99.0", "2.0.0", ("warning", "warning")),
        ("1.21.0", "unreleased", ("failed", "ok")),
    ],
)
def test_versions_older_or_newer_than_those_that_were_tried_are_named(
    both: Both, kubernetes: str, consul: str, told: tuple[str, str]
) -> None:
    """Another minor version may answer otherwise; between two that were tried it is only said."""
    both.kube.version, both.consul.version = kubernetes, consul
    both.consul.register("web", "vm-1", "10.0.0.1", 80)
    found = both.check(Rule(services=("web",)))
    probes = [found[f"{server} version"] for server in ("kubernetes", "consul")]
    assert tuple(state for state, _ in probes) == told
    for (state, text), version in zip(probes, (kubernetes, consul), strict=True):
        minor = ".".join(version.split(".")[:2])
        assert ("never tried with" in text and minor in text.partition("with")[2]) == (state == "warning")
