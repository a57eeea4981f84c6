"""What `bridge.kube` counts on, asked of the fake and of the real API server by the same functions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bridge.core import annotated, ownership
from bridge.core.model import (
    SERVICE_KINDS,
    Body,
    CurrentEndpoints,
    CurrentSlice,
    Endpoint,
    Family,
    Kind,
    Meta,
    Port,
    Target,
)
from bridge.errors import ConflictError, PermanentError, StaleError
from bridge.kube import objects
from bridge.kube.client import APPLY, METADATA_ONLY, KubeClient, SilenceError
from bridge.kube.informer import Informer
from bridge.kube.permissions import NamespaceState, can_i, namespace_states
from bridge.kube.reads import list_once, list_pages
from bridge.kube.store import Store
from bridge.kube.writer import NEVER_VERSION, Writer
from tests.contract.sides import BOTH, kube_side
from tests.support.fakes.kube import PLAIN_TOKEN, wait_for
from tests.support.options import kube_config
from tests.support.raw import RawKube
from tests.unit.kube.builders import (
    HTTP,
    bodies,
    create,
    delete,
    down,
    endpoints,
    group,
    raw_endpoints,
    raw_service,
    ready,
    service,
    slice_of,
    update,
)

ALL_KINDS = SERVICE_KINDS


@dataclass
class Side:
    """One of the two servers, with a fresh namespace on it."""

    name: str
    kubeconfig: str
    namespace: str
    raw: RawKube
    client: KubeClient
    writer: Writer
    nobody: Callable[[], str]
    """A kubeconfig of a user without any permission."""

    def path(self, kind: Kind, name: str = "") -> str:
        """Path of an object in the namespace."""
        return objects.path(kind, self.namespace, name)

    def put(self, body: dict[str, Any], manager: str = "kubectl-create") -> Meta:
        """Create an object as another client does."""
        kind = Kind(body["kind"])
        found = self.raw.json("POST", f"{self.path(kind)}?fieldManager={manager}", body)
        meta = objects.decode_meta(kind, found)
        assert meta is not None
        return meta

    def apply(self, change: Any) -> Meta:
        """Write a change that must succeed."""
        meta = self.writer.apply(change)
        assert meta is not None
        return meta

    def stored(self, kind: Kind, name: str = "radosgw") -> dict[str, Any]:
        """An object that must be there."""
        found = self.raw.get(self.path(kind, name))
        assert found is not None
        return found

    def shelter(self, kind: Kind) -> None:
        """Make the Service beside an Endpoints object, so that the control plane leaves later ones of the name alone.

        (The endpoints controller looks at the name again whenever Endpoints go: docs/kubernetes.md.)
        """
        if kind is Kind.ENDPOINTS:
            self.put(raw_service(self.namespace, "radosgw"))

    def make(self, kind: Kind, name: str = "radosgw") -> Meta:
        """Create one of ours."""
        return self.apply(create(bodies()[kind], self.namespace, name))


@pytest.fixture(params=BOTH)
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    """The fake, or the lab's API server with a namespace that is deleted afterwards."""
    with kube_side(request, tmp_path, "contract") as made:

        def nobody() -> str:
            if made.fake is None:
                return str(request.getfixturevalue("lab").service_account(made.namespace, "nobody"))
            for kind in SERVICE_KINDS:
                made.fake.forbid("plain", "patch", objects.PLURAL[kind])
            return made.fake.kubeconfig(tmp_path, PLAIN_TOKEN, "plain.kubeconfig")

        writer = Writer(made.client)
        yield Side(request.param, made.kubeconfig, made.namespace, made.raw, made.client, writer, nobody)


# --------------------------------------------------------------------------- create


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_apply_with_the_version_that_no_object_has_creates_and_never_overwrites(side: Side, kind: Kind) -> None:
    """The create-only apply: 201 when absent, also right after a deletion; 409 when present, forced or not."""
    side.shelter(kind)
    body = objects.encode(create(bodies()[kind], side.namespace))
    body["metadata"]["resourceVersion"] = NEVER_VERSION
    data = json.dumps(body).encode()

    def patch(force: str) -> int:
        query = [("fieldManager", "consul-bridge"), ("force", force)]
        allow = frozenset({409})
        path = side.path(kind, "radosgw")
        return side.client.request("PATCH", path, query=query, body=data, content_type=APPLY, allow=allow).status

    statuses = []
    for force in ("false", "true") * 3:
        statuses += [patch(force), patch("false"), patch("true")]
        side.raw.delete(side.path(kind, "radosgw"))
    assert statuses == [201, 409, 409] * 6


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_create_answers_with_the_identity_and_our_pairs(side: Side, kind: Kind) -> None:
    """The Meta that comes back is what a later read of the object decodes to."""
    meta = side.make(kind)
    read = objects.decode_meta(kind, side.stored(kind))
    assert meta == read
    assert (meta.owner, meta.annotations) == ("default", bodies()[kind].annotations)
    extra = {ownership.SLICE_SERVICE: "radosgw", ownership.SLICE_MANAGED_BY: "consul-bridge"}
    expected = {**dict(bodies()[kind].labels), **(extra if kind is Kind.ENDPOINT_SLICE else {})}
    assert dict(meta.labels) == expected


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.ENDPOINTS])
def test_create_leaves_another_writers_object_alone_and_says_whose_it_is(side: Side, kind: Kind) -> None:
    """A conflict touches nothing: same version, no trace of our field manager."""
    theirs = {
        Kind.SERVICE: raw_service(side.namespace, "radosgw", labels={"app.kubernetes.io/managed-by": "Helm"}),
        Kind.ENDPOINTS: raw_endpoints(side.namespace, "radosgw", "10.9.9.9"),
    }[kind]
    before = side.put(theirs)
    with pytest.raises(ConflictError) as caught:
        side.writer.apply(create(bodies()[kind], side.namespace))
    assert side.stored(kind)["metadata"]["resourceVersion"] == before.resource_version
    whose = "Helm" if kind is Kind.SERVICE else "kubectl-create"
    assert whose in str(caught.value)
    assert f"{side.namespace}/radosgw" in str(caught.value)


def test_create_over_another_owners_object_names_the_owner(side: Side) -> None:
    """Two bridges with different owner ids never take from each other."""
    side.apply(create(endpoints(owner="blue"), side.namespace))
    with pytest.raises(ConflictError, match='owner id "blue"'):
        side.writer.apply(create(endpoints(owner="green"), side.namespace))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_create_over_our_own_object_says_read_it_again(side: Side, kind: Kind) -> None:
    """What we made ourselves and forgot is stale knowledge, no conflict."""
    side.make(kind)
    with pytest.raises(StaleError):
        side.writer.apply(create(bodies()[kind], side.namespace))


def test_many_creators_at_once_make_one_object(side: Side) -> None:
    """Eight writers create the same object: exactly one succeeds, all others must read it again."""
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        try:
            side.writer.apply(create(endpoints(), side.namespace))
            outcomes.append("created")
        except StaleError:
            outcomes.append("stale")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["stale"] * 7


# --------------------------------------------------------------------------- update


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_update_hits_only_what_was_seen(side: Side, kind: Kind) -> None:
    """An older version, a deleted object and one that was recreated under the name: each is stale, nothing changes."""
    side.shelter(kind)
    first = side.make(kind)
    body = replace(bodies()[kind], annotations=(("consul-bridge/service", "other"),))
    second = side.apply(update(body, first))
    with pytest.raises(StaleError):
        side.writer.apply(update(bodies()[kind], first))
    assert side.stored(kind)["metadata"]["resourceVersion"] == second.resource_version
    side.raw.delete(side.path(kind, "radosgw"))
    with pytest.raises(StaleError):
        side.writer.apply(update(body, second))
    assert side.raw.get(side.path(kind, "radosgw")) is None
    third = side.make(kind)
    with pytest.raises(StaleError):
        side.writer.apply(update(body, second))
    with pytest.raises(StaleError):
        side.writer.apply(update(body, replace(third, uid=second.uid)))
    assert side.stored(kind)["metadata"]["resourceVersion"] == third.resource_version


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_update_with_the_same_content_writes_nothing(side: Side, kind: Kind) -> None:
    """Same content, same version."""
    meta = side.make(kind)
    assert side.apply(update(bodies()[kind], meta)) == meta


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_pairs_of_others_stay_and_are_not_counted_as_ours(side: Side, kind: Kind) -> None:
    """A user's label survives our writes; one that we stop sending goes; Meta holds ours alone."""
    meta = side.apply(
        create(replace(bodies()[kind], annotations=(("ours/gone", "1"), ("ours/kept", "1"))), side.namespace)
    )
    side.raw.json(
        "PATCH",
        f"{side.path(kind, 'radosgw')}?fieldManager=kubectl-edit",
        {"metadata": {"labels": {"team": "storage"}, "annotations": {"consul-bridge/adopt": "true"}}},
        "application/merge-patch+json",
    )
    seen = objects.decode_meta(kind, side.stored(kind))
    assert seen is not None
    assert seen.labels == meta.labels
    assert ("consul-bridge/adopt", "true") in seen.ownership
    after = side.apply(update(replace(bodies()[kind], annotations=(("ours/kept", "1"),)), seen))
    assert after.annotations == (("ours/kept", "1"),)
    stored = side.stored(kind)["metadata"]
    assert stored["labels"]["team"] == "storage"
    assert set(stored["annotations"]) == {"ours/kept", "consul-bridge/adopt"}


def test_a_value_that_another_writer_changed_is_no_longer_ours_and_comes_back(side: Side) -> None:
    """`kubectl edit` of our label takes ownership, which shows as a missing pair; the update takes it back."""
    side.apply(create(endpoints(labels=(("team", "storage"),)), side.namespace))
    side.raw.json(
        "PATCH",
        f"{side.path(Kind.ENDPOINTS, 'radosgw')}?fieldManager=kubectl-edit",
        {"metadata": {"labels": {"team": "other"}}},
        "application/merge-patch+json",
    )
    seen = objects.decode_meta(Kind.ENDPOINTS, side.stored(Kind.ENDPOINTS))
    assert seen is not None
    assert "team" not in dict(seen.labels)
    after = side.apply(update(endpoints(labels=(("team", "storage"),)), seen))
    assert dict(after.labels)["team"] == "storage"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_update_takes_back_content_that_another_manager_took(side: Side, kind: Kind) -> None:
    """A user applied other content by force; ours comes back whole."""
    side.make(kind)
    theirs = objects.encode(create(bodies()[kind], side.namespace))
    theirs["metadata"]["labels"] = {}
    theirs["metadata"].pop("annotations")
    match kind:
        case Kind.SERVICE:
            theirs["spec"]["ports"] = [{"name": "http", "port": 8080, "protocol": "TCP", "targetPort": 1}]
        case Kind.ENDPOINTS:
            theirs["subsets"][0]["addresses"] = [{"ip": "10.66.6.6"}]
        case Kind.ENDPOINT_SLICE:
            theirs["endpoints"][0]["addresses"] = ["10.66.6.6"]
    found = side.raw.apply(side.path(kind, "radosgw"), theirs, manager="kubectl-edit")
    seen = objects.decode_meta(kind, found)
    assert seen is not None
    change = update(bodies()[kind], seen)
    meta = side.apply(change)
    decoded = objects.decode(kind, side.stored(kind))
    assert decoded == objects.expected(change, meta)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_update_works_when_the_server_lost_the_managed_fields(side: Side, kind: Kind) -> None:
    """A user wiped managedFields: we own nothing any more, one update owns it all again."""
    side.make(kind)
    found = side.raw.json(
        "PATCH",
        side.path(kind, "radosgw"),
        {"metadata": {"managedFields": [{}]}},
        "application/merge-patch+json",
    )
    seen = objects.decode_meta(kind, found)
    assert seen is not None
    assert (seen.labels, seen.owner) == ((), "default")
    change = update(bodies()[kind], seen)
    meta = side.apply(change)
    assert objects.decode(kind, side.stored(kind)) == objects.expected(change, meta)


def test_an_adopted_service_has_our_ports_and_no_others(side: Side) -> None:
    """An apply merges ports by (port, protocol): what its former owner had there is taken out as well."""
    theirs = side.put(
        raw_service(side.namespace, "radosgw", ports=[{"name": "old", "port": 81}, {"name": "http", "port": 8080}])
    )
    change = update(service(), theirs)
    meta = side.apply(change)
    assert objects.decode(Kind.SERVICE, side.stored(Kind.SERVICE)) == objects.expected(change, meta)
    assert side.apply(update(service(), meta)) == meta


def test_a_port_that_a_user_added_to_our_service_goes_again(side: Side) -> None:
    """kubectl edit adds a port to our Service: the next update takes it out."""
    meta = side.make(Kind.SERVICE)
    side.raw.json(
        "PATCH",
        f"{side.path(Kind.SERVICE, 'radosgw')}?fieldManager=kubectl-edit",
        {"spec": {"ports": [{"name": "http", "port": 8080}, {"name": "more", "port": 9}]}},
        "application/merge-patch+json",
    )
    seen = objects.decode_service(side.stored(Kind.SERVICE))
    assert seen is not None
    assert [p.number for p in seen.ports] == [8080, 9]
    change = update(service(), seen.meta)
    meta = side.apply(change)
    assert objects.decode(Kind.SERVICE, side.stored(Kind.SERVICE)) == objects.expected(change, meta)


def test_an_external_name_turns_into_a_cluster_ip_in_place(side: Side) -> None:
    """What HashiCorp's catalog sync leaves: same object, now ClusterIP, and no externalName left behind."""
    body = raw_service(
        side.namespace, "radosgw", labels={"consul": "true"}, type="ExternalName", externalName="r.service.consul"
    )
    body["spec"].pop("ports")
    theirs = side.put(body, manager="consul-k8s")
    assert ("consul", "true") in theirs.ownership
    meta = side.apply(update(replace(service(), sets_type=True), theirs))
    spec = side.stored(Kind.SERVICE)["spec"]
    assert meta.uid == theirs.uid
    assert spec["type"] == "ClusterIP"
    assert spec["clusterIP"].startswith("10.")
    assert "externalName" not in spec


# --------------------------------------------------------------------------- delete


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_delete_hits_only_what_was_seen(side: Side, kind: Kind) -> None:
    """A changed object stays; the right version goes; one that is gone already is no error; a new one stays."""
    side.shelter(kind)
    first = side.make(kind)
    second = side.apply(update(replace(bodies()[kind], annotations=()), first))
    with pytest.raises(StaleError):
        side.writer.apply(delete(first))
    assert side.raw.get(side.path(kind, "radosgw")) is not None
    assert side.writer.apply(delete(second)) is None
    assert side.raw.get(side.path(kind, "radosgw")) is None
    assert side.writer.apply(delete(second)) is None
    side.make(kind)
    with pytest.raises(StaleError):
        side.writer.apply(delete(second))
    assert side.raw.get(side.path(kind, "radosgw")) is not None


# --------------------------------------------------------------------------- content


CONTENTS: dict[str, Body] = {
    "service": service(HTTP, Port("metrics", 9100, app_protocol="http")),
    "service udp and tcp": service(Port("dns", 53, "UDP"), Port("dns-tcp", 53)),
    "service one nameless port": service(Port("", 80)),
    "service on another target port": replace(service(Port("", 80)), target_ports=(8080,)),
    "node port": replace(service(), type="NodePort", sets_type=True),
    "headless without ports": replace(service(headless=True), ports=()),
    "headless": service(headless=True),
    "headless both families": replace(
        service(headless=True, families=(Family.IPV4, Family.IPV6)), family_policy="PreferDualStack"
    ),
    "endpoints": endpoints(group(*ready("10.0.0.2", "10.0.0.10"), *down("10.0.0.1"))),
    "endpoints only not ready": endpoints(group(*down("10.0.0.1"))),
    "endpoints nameless port": endpoints(group(*ready("10.0.0.1"), ports=(Port("", 80),))),
    "endpoints with hostnames": endpoints(
        group(Endpoint("10.0.0.1", ready=True, hostname="vm1"), replace(down("10.0.0.2")[0], hostname="10"))
    ),
    "endpoints without ports": endpoints(group(*ready("10.0.0.1"), *down("10.0.0.2"), ports=())),
    "endpoints on several ports": endpoints(
        group(*ready("10.0.0.1"), ports=(Port("http", 80),)), group(*ready("10.0.0.2"), ports=(Port("http", 81),))
    ),
    "endpoints both families": endpoints(
        group(*ready("10.0.0.1")), group(*ready("fd00::1", "2001:db8::a"), family=Family.IPV6)
    ),
    "slice": slice_of(
        "radosgw",
        group(
            Endpoint("10.0.0.1", ready=True, zone="a", node_name="node-1", hostname="vm1"),
            Endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
            Endpoint("10.0.0.3", ready=False, serving=False),
            ports=(HTTP, Port("metrics", 9100)),
        ),
    ),
    "endpoints of many, answered in chunks": endpoints(group(*ready(*(f"10.0.1.{n}" for n in range(100))))),
    "slice of many, answered in chunks": slice_of("radosgw", group(*ready(*(f"10.0.1.{n}" for n in range(100))))),
    "slice without ports": slice_of("radosgw", group(*ready("10.0.0.1"), ports=())),
    "slice ipv6": slice_of("radosgw", group(*ready("fd00::1"), family=Family.IPV6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_what_was_written_reads_back_as_expected(side: Side, name: str) -> None:
    """`expected`, which the cache shows until the watch tells, is what the server then shows; and it is canonical."""
    change = create(CONTENTS[name], side.namespace)
    meta = side.apply(change)
    read = objects.decode(change.kind, side.stored(change.kind))
    assert read == objects.expected(change, meta)
    assert not isinstance(read, CurrentEndpoints | CurrentSlice) or read.normalized


def test_endpoints_without_any_address_stay_there_empty(side: Side) -> None:
    """A service with zero instances: the subsets go, the object stays."""
    meta = side.make(Kind.ENDPOINTS)
    empty = replace(endpoints(), groups=())
    side.apply(update(empty, meta))
    stored = side.stored(Kind.ENDPOINTS)
    assert "subsets" not in stored
    assert objects.decode_endpoints(stored) == objects.expected(
        update(empty, meta), objects.decode_meta(Kind.ENDPOINTS, stored) or meta
    )


def test_restored_endpoints_can_be_emptied(side: Side) -> None:
    """The client that restored them owns their subsets as well as we do; and written again, nothing changes."""
    body = objects.encode(create(endpoints(), side.namespace))
    meta = side.apply(update(endpoints(), side.put(body, manager="velero-server")))
    empty = replace(endpoints(), groups=())
    meta = side.apply(update(empty, meta))
    stored = side.stored(Kind.ENDPOINTS)
    assert "subsets" not in stored
    assert side.apply(update(empty, meta)).resource_version == meta.resource_version
    assert side.apply(update(endpoints(), meta)).resource_version != meta.resource_version
    assert side.stored(Kind.ENDPOINTS)["subsets"] == body["subsets"]


# --------------------------------------------------------------------------- refusals


def test_a_missing_namespace_is_named(side: Side) -> None:
    """404 of the namespace: permanent, with the remedy."""
    with pytest.raises(PermanentError, match='namespace "no-such-namespace" does not exist'):
        side.writer.apply(create(endpoints(), "no-such-namespace"))


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.1.1", "224.0.0.9", "0.0.0.0", "010.0.0.1", "host.example"])
def test_addresses_that_kubernetes_refuses_are_permanent_errors(side: Side, address: str) -> None:
    """422 with the server's reason; nothing is stored."""
    with pytest.raises(PermanentError, match=r"refused \(422\).*Invalid value"):
        side.writer.apply(create(endpoints(group(*ready(address))), side.namespace))
    assert side.raw.get(side.path(Kind.ENDPOINTS, "radosgw")) is None


def test_a_refusal_with_a_thousand_reasons_stays_short(side: Side) -> None:
    """The message of a 422 is trimmed."""
    many = ready(*(f"127.0.{n // 250}.{n % 250}" for n in range(300)))
    with pytest.raises(PermanentError) as caught:
        side.writer.apply(create(endpoints(group(*many)), side.namespace))
    assert len(str(caught.value)) < 700


def test_the_address_type_of_a_slice_never_changes(side: Side) -> None:
    """422, permanent: such a slice must be replaced."""
    meta = side.make(Kind.ENDPOINT_SLICE)
    with pytest.raises(PermanentError, match="422"):
        side.writer.apply(update(slice_of("radosgw", group(*ready("fd00::1"), family=Family.IPV6)), meta))


def test_a_500_about_the_schema_is_permanent(side: Side) -> None:
    """Two ports with one (port, protocol): the server answers 500, and would forever."""
    with pytest.raises(PermanentError, match="schema"):
        side.writer.apply(create(service(Port("a", 80), Port("b", 80)), side.namespace))


def test_wrong_credentials_are_named(side: Side, tmp_path: Path) -> None:
    """401 is permanent and does not show the token."""
    text = Path(side.kubeconfig).read_text()
    config = json.loads(text) if text.startswith("{") else __import__("yaml").safe_load(text)
    for user in config["users"]:
        user["user"] = {"token": "a-very-wrong-token"}
    wrong = tmp_path / "wrong.kubeconfig"
    wrong.write_text(json.dumps(config))
    client = KubeClient(kube_config(kubeconfig=str(wrong)))
    try:
        with pytest.raises(PermanentError, match="refuses our credentials") as caught:
            list(list_pages(client, Kind.SERVICE, side.namespace, ""))
    finally:
        client.close()
    assert "a-very-wrong-token" not in str(caught.value)


def test_the_version_and_what_exists(side: Side) -> None:
    """`check` asks for the version, for namespaces and for permissions."""
    assert (side.client.version().major, side.client.version().minor) >= (1, 30)
    assert namespace_states(side.client, [side.namespace, "no-such-namespace"]) == {
        side.namespace: NamespaceState.EXISTS,
        "no-such-namespace": NamespaceState.ABSENT,
    }
    assert can_i(side.client, "patch", "", "endpoints", side.namespace)


def test_an_unknown_path_is_no_missing_object(side: Side) -> None:
    """404 of a path that is no API: permanent."""
    with pytest.raises(PermanentError):
        side.client.request("GET", "/apis/no.such.group/v1/things")


# --------------------------------------------------------------------------- reading


def test_lists_come_in_pages_and_whole(side: Side) -> None:
    """Seven objects in pages of three: three pages, each object once, one version."""
    for number in range(7):
        side.apply(create(endpoints(), side.namespace, f"s{number}"))
    pages = list(list_pages(side.client, Kind.ENDPOINTS, side.namespace, objects.OURS, page=3))
    assert [len(items) for items, _ in pages] == [3, 3, 1]
    assert {i["metadata"]["name"] for items, _ in pages for i in items} == {f"s{n}" for n in range(7)}
    assert len({version for _, version in pages}) == 1


def test_list_once_knows_ours_and_whose_the_others_are(side: Side) -> None:
    """Services of everybody, Endpoints and slices of ours, metadata of foreign Endpoints."""
    for kind in SERVICE_KINDS:
        side.make(kind)
    side.put(raw_service(side.namespace, "theirs", selector={"app": "x"}))
    side.put(raw_endpoints(side.namespace, "foreign", "10.9.9.9"))
    store = list_once(side.client, (side.namespace,), "default")
    mine, theirs, foreign = (store.current(Target(side.namespace, n)) for n in ("radosgw", "theirs", "foreign"))
    assert store.targets() == {Target(side.namespace, "radosgw")}
    assert store.total_ready() == 1
    assert [o.meta.owner if o else None for o in (mine.service, mine.endpoints, *mine.slices)] == ["default"] * 3
    assert theirs.service is not None
    assert theirs.service.has_selector
    assert foreign.endpoints is not None
    assert (foreign.endpoints.meta.owner, foreign.endpoints.groups) == (None, ())


class Watched:
    """A running cache and what it told."""

    def __init__(self, side: Side, namespaces: tuple[str, ...] | None = None) -> None:
        self.told: list[Target] = []
        self.side = side
        self.cache = Informer(side.client, namespaces or (side.namespace,), "default", self.told.append)

    def __enter__(self) -> Watched:
        self.cache.start()
        assert self.cache.wait_synced(30)
        assert wait_for(lambda: self.cache.status()["watches"] == 3)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.cache.close()

    def write(self, change: Any) -> Meta | None:
        """Write as the engine does."""
        self.cache.expect(change)
        meta = self.side.writer.apply(change)
        self.cache.confirm(change, meta)
        return meta


def test_our_own_writes_are_visible_at_once_and_are_no_news(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create, update and delete of each kind: seen in `current` right after the write, never told by `on_change`.

    Nor is an echo decoded whose answer came first: an event begins with what tells that.
    """
    asked, holds = set(), Store.holds

    def note(store: Store, kind: Kind, key: tuple[str, str], version: int) -> bool:
        asked.add((kind, key))
        return holds(store, kind, key, version)

    monkeypatch.setattr(Store, "holds", note)
    target = Target(side.namespace, "radosgw")
    with Watched(side) as watched:
        for body in bodies().values():
            meta = watched.write(create(body, side.namespace))
            assert meta is not None
            meta = watched.write(update(replace(body, annotations=()), meta))
            assert meta is not None
        assert watched.cache.targets() == {target}
        assert watched.cache.store.total_ready() == 1
        current = watched.cache.current(target)
        for found in (current.endpoints, *current.slices, current.service):
            assert found is not None
            watched.write(delete(found.meta))
        assert watched.cache.targets() == set()
        marker = Target(side.namespace, "marker")
        for kind in (Kind.SERVICE, Kind.ENDPOINTS):
            side.raw.apply(side.path(kind, "marker"), objects.encode(create(bodies()[kind], side.namespace, "marker")))
        sliced = objects.encode(create(slice_of("marker"), side.namespace, "marker"))
        side.raw.apply(side.path(Kind.ENDPOINT_SLICE, "marker"), sliced)
        assert wait_for(lambda: watched.told.count(marker) >= 3)  # every watch has caught up
        assert target not in watched.told
        assert {kind for kind, (_, name) in asked if name == "radosgw"} >= {Kind.SERVICE, Kind.ENDPOINTS}
        assert Kind.ENDPOINT_SLICE in {kind for kind, _ in asked}
        assert watched.cache.current(target).slices == ()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_edits_and_deletions_by_others_are_reported(side: Side, kind: Kind) -> None:
    """A user changes, then deletes, what is ours."""
    side.shelter(kind)
    target = Target(side.namespace, "radosgw")
    with Watched(side) as watched:
        watched.write(create(bodies()[kind], side.namespace))
        theirs = {
            Kind.SERVICE: {"spec": {"ports": [{"name": "http", "port": 81}]}},
            Kind.ENDPOINTS: {
                "subsets": [{"addresses": [{"ip": "10.66.6.6"}], "ports": [{"name": "http", "port": 8080}]}]
            },
            Kind.ENDPOINT_SLICE: {"endpoints": [{"addresses": ["10.66.6.6"]}]},
        }[kind]
        side.raw.json("PATCH", side.path(kind, "radosgw"), theirs, "application/merge-patch+json")
        assert wait_for(lambda: watched.told == [target])
        side.raw.delete(side.path(kind, "radosgw"))
        assert wait_for(lambda: watched.told == [target, target])
        assert watched.cache.targets() == set()


def test_an_endpoints_object_that_loses_our_label_is_no_longer_held(side: Side) -> None:
    """The watch selects by label: taking it off reads as a deletion, and creating then finds a conflict."""
    target = Target(side.namespace, "radosgw")
    with Watched(side) as watched:
        watched.write(create(endpoints(), side.namespace))
        patch = {"metadata": {"labels": {ownership.MANAGED_BY: None}}}
        side.raw.json("PATCH", side.path(Kind.ENDPOINTS, "radosgw"), patch, "application/merge-patch+json")
        assert wait_for(lambda: watched.told == [target])
        assert watched.cache.current(target).endpoints is None
        with pytest.raises(ConflictError):
            watched.write(create(endpoints(), side.namespace))
        assert watched.cache.refresh()
        held = watched.cache.current(target).endpoints
        assert held is not None
        assert held.meta.owner is None


def test_services_of_others_are_reported_when_they_come_change_and_go(side: Side) -> None:
    """A Service in the way, a Service that asks to be mirrored."""
    target = Target(side.namespace, "theirs")
    with Watched(side) as watched:
        side.put(raw_service(side.namespace, "theirs"))
        assert wait_for(lambda: watched.told == [target])
        labels = {"metadata": {"labels": {annotated.MIRROR: "true"}}}
        side.raw.json("PATCH", side.path(Kind.SERVICE, "theirs"), labels, "application/merge-patch+json")
        assert wait_for(lambda: len(watched.told) == 2)
        assert [s.meta.name for s in watched.cache.annotated_services()] == ["theirs"]
        side.raw.delete(side.path(Kind.SERVICE, "theirs"))
        assert wait_for(lambda: len(watched.told) == 3)
        assert watched.cache.annotated_services() == ()


def test_a_refresh_of_a_healthy_cache_finds_nothing(side: Side) -> None:
    """Lists beside the watches confirm what is held, and tell nothing."""
    with Watched(side) as watched:
        for body in bodies().values():
            watched.write(create(body, side.namespace))
        assert watched.cache.refresh()
        assert watched.cache.status()["refresh_found"] == 0
        assert watched.told == []


def test_a_watch_without_a_version_begins_with_what_is_there(side: Side) -> None:
    """As if it had just been added; what happens later follows."""
    side.make(Kind.ENDPOINTS)
    query = [("watch", "1"), ("timeoutSeconds", "30")]
    with side.client.stream(side.path(Kind.ENDPOINTS), query=query, silence=20) as lines:
        first = json.loads(next(lines))
        assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "radosgw")
        side.raw.delete(side.path(Kind.ENDPOINTS, "radosgw"))
        assert json.loads(next(lines))["type"] == "DELETED"


def test_a_watch_of_which_nothing_happens_ends_by_itself_without_a_word(side: Side) -> None:
    """timeoutSeconds is the server's: a short watch ends with no event, no bookmark and no error."""
    side.make(Kind.ENDPOINTS)
    version = next(list_pages(side.client, Kind.ENDPOINTS, side.namespace, objects.OURS))[1]
    query = [("watch", "1"), ("resourceVersion", version), ("timeoutSeconds", "2"), ("allowWatchBookmarks", "true")]
    with side.client.stream(side.path(Kind.ENDPOINTS), query=query, silence=20) as lines:
        assert list(lines) == []


def test_a_watch_from_a_version_to_come_is_silent(side: Side) -> None:
    """Which is why silence makes the cache ask for the server's version (a restored etcd counts from lower)."""
    side.make(Kind.ENDPOINTS)
    query = [("watch", "1"), ("resourceVersion", "99999999999"), ("timeoutSeconds", "30")]
    with side.client.stream(side.path(Kind.ENDPOINTS), query=query, silence=1) as lines:
        side.raw.delete(side.path(Kind.ENDPOINTS, "radosgw"))
        with pytest.raises(SilenceError):
            next(lines)


def test_metadata_only_answers_carry_what_we_need(side: Side) -> None:
    """PartialObjectMetadata has managedFields, labels, uid and version, and no content."""
    side.make(Kind.ENDPOINTS)
    answer = side.client.request("GET", side.path(Kind.ENDPOINTS, "radosgw"), accept=METADATA_ONLY)
    found = json.loads(answer.body)
    assert found["kind"] == "PartialObjectMetadata"
    assert "subsets" not in found
    assert {"uid", "resourceVersion", "managedFields", "labels"} <= set(found["metadata"])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_a_user_may_not_do_is_named_with_verb_resource_and_namespace(side: Side, kind: Kind) -> None:
    """403 says which permission is missing, where, and how to grant it."""
    client = KubeClient(kube_config(kubeconfig=side.nobody()))
    try:
        with pytest.raises(PermanentError) as caught:
            Writer(client).apply(create(bodies()[kind], side.namespace))
        assert not can_i(client, "patch", "", objects.PLURAL[kind], side.namespace)
    finally:
        client.close()
    full = objects.PLURAL[kind] + (".discovery.k8s.io" if kind is Kind.ENDPOINT_SLICE else "")
    for part in (
        f"forbids us to patch {objects.PLURAL[kind]} in namespace {side.namespace}",
        f"--verb=patch --resource={full} -n {side.namespace}",
    ):
        assert part in str(caught.value)
