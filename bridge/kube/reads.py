"""Reads from the API server: lists in pages, whole stores for the one-shot commands, and how a watch begins.

`informer` follows what is listed here; `namespaces`, `nodes` and `lease_api` read other kinds in the same way.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from bridge.core import ownership
from bridge.core.model import SERVICE_KINDS, CurrentSlice, Kind, Meta, Target
from bridge.errors import BridgeError, CancelledError, ForbiddenError, StaleError, TransientError
from bridge.json_shape import Body
from bridge.kube import gateway, objects, wire
from bridge.kube.client import JSON, METADATA_LIST_ONLY, KubeClient
from bridge.kube.objects import Decoded
from bridge.kube.permissions import may_list_routes
from bridge.kube.store import Key, Store
from bridge.kube.transport import TooLargeError

PAGE = 500
"""Objects per page of a list: 29 instead of 59 MiB for 6,000 Endpoints, at 40 ms more (docs/kubernetes.md)."""
WATCH_SECONDS = (240, 300)
"""How long the server is asked to keep a watch open; at random, so that watches do not end together."""
SILENCE_SECONDS = 150.0
"""A watch without a byte for this long is given up: bookmarks come about once a minute, on most servers."""
NAMES_LENGTH = 4000
"""Characters of Services' names in one question: every proxy passes a URL of this length."""

SELECTORS: dict[Kind, str] = {
    Kind.SERVICE: "",
    Kind.ENDPOINTS: objects.OURS,
    Kind.ENDPOINT_SLICE: objects.OF_NO_PODS,
    Kind.HTTP_ROUTE: "",
}

Namespaces = tuple[str, ...] | None
T = TypeVar("T")
Read = Callable[[Body], Any]


def list_pages(
    client: KubeClient,
    kind: Kind,
    namespace: str | None,
    selector: str,
    accept: str = JSON,
    page: int = PAGE,
    read: Read = wire.page,
) -> Iterator[tuple[list[Any], str]]:
    """Pages of a list of objects of one kind, as `pages`."""
    more = [("labelSelector", selector)] if selector else []
    return pages(client, objects.path(kind, namespace), objects.PLURAL[kind], more, accept, page, read)


def pages(
    client: KubeClient,
    path: str,
    plural: str,
    more: Sequence[tuple[str, str]] = (),
    accept: str = JSON,
    page: int = PAGE,
    read: Read = wire.page,
) -> Iterator[tuple[list[Any], str]]:
    """Pages of a list as (items, the list's resourceVersion). StaleError when the server forgot the list midway.

    A page that is larger than an answer may be is asked for again in smaller ones. `more` goes into each question,
    `read` makes a page of each answer.
    """
    following = ""
    while True:
        query = [("limit", str(page)), *more, *([("continue", following)] if following else [])]
        try:
            found = client.page(path, query=query, accept=accept, read=read)
            metadata = found["metadata"]
            items = list(found.get("items") or [])
            following = metadata.get("continue") or ""
            version = str(metadata["resourceVersion"])
        except TooLargeError:
            if page == 1:
                raise
            page = max(1, page // 5)
            continue
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TransientError(f"the list of {plural} is no Kubernetes list") from error
        del found
        yield items, version
        if not following:
            return


def three_tries(read: Callable[[], T]) -> T:
    """List again when the server forgot the list midway (its pages expire)."""
    for _ in range(2):
        with contextlib.suppress(StaleError):
            return read()
    return read()


def watch_query(version: str, seconds: tuple[int, int] = WATCH_SECONDS) -> list[tuple[str, str]]:
    """The parameters of a watch that begins at `version` and ends after so many seconds, at random between two."""
    return [
        ("watch", "1"),
        ("allowWatchBookmarks", "true"),
        ("resourceVersion", version),
        ("timeoutSeconds", str(random.randint(*seconds))),  # noqa: S311 - spreads load, no secret
    ]


def selector_of(kind: Kind, *, wanted: bool) -> str:
    """What is read of a kind. Of HTTPRoutes that no rule asks for those that a bridge made."""
    return SELECTORS[kind] if wanted or kind is not Kind.HTTP_ROUTE else objects.OURS


def list_into(
    store: Store, client: KubeClient, kind: Kind, namespace: str | None, selector: str
) -> tuple[set[Target], int]:
    """Read a whole list into the store, page by page: the targets where something differs, and the list's version.

    What the last list had in the very same bytes is not decoded again.
    """
    since, listed, digests, version = store.begin_list(), list[Decoded](), dict[Key, int](), ""
    for items, version in list_pages(client, kind, namespace, selector, read=wire.raw_page):  # noqa: B007 - the last
        for item in items:
            key, digest = wire.identify(item)
            try:
                found = store.decoded(kind, key, digest) or objects.decode(kind, wire.item(item))
            except (ValueError, RecursionError) as error:
                raise TransientError(f"the list of {objects.PLURAL[kind]} is no Kubernetes list") from error
            if found is not None:
                listed.append(found)
                digests[key] = digest
    position = objects.version(version)
    return store.replace(kind, namespace, listed, position, since, digests), position


def _read_foreign(client: KubeClient, namespace: str | None) -> list[Meta]:
    """Metadata of the Endpoints that no bridge manages."""
    return [
        meta
        for items, _ in list_pages(client, Kind.ENDPOINTS, namespace, objects.NOT_OURS, METADATA_LIST_ONLY)
        for item in items
        if (meta := objects.decode_meta(Kind.ENDPOINTS, item)) is not None
    ]


def _read_leftovers(client: KubeClient, namespace: str | None, asked: Iterable[Target]) -> list[CurrentSlice]:
    """The slices of pods whose Service is one of those that have no pods.

    All slices of pods are most of what a cluster has, so it is asked for these Services by name.
    """
    found: list[CurrentSlice] = []
    for names in _chunks(sorted({target.name for target in asked})):
        selector = f"{objects.OF_PODS},{ownership.SLICE_SERVICE} in ({','.join(names)})"
        for items, _ in list_pages(client, Kind.ENDPOINT_SLICE, namespace, selector):
            found += (piece for item in items if (piece := objects.decode_slice(item)) is not None)
    return found


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for name in names:
        if chunk and sum(map(len, chunk)) + 3 * len(chunk) + len(name) > NAMES_LENGTH:
            yield chunk
            chunk = []
        chunk.append(name)
    if chunk:
        yield chunk


def fill_leftovers(client: KubeClient, store: Store, namespace: str | None, asked: Collection[Target]) -> None:
    store.replace_leftovers(asked, _read_leftovers(client, namespace, asked) if asked else ())


def read_slices_again(client: KubeClient, store: Store, namespaces: Namespaces) -> None:
    """List the slices once more into a store that `list_once` filled."""
    for namespace in scopes_of(namespaces):
        if (namespace or "") not in store.unreadable:
            fill(client, store, Kind.ENDPOINT_SLICE, namespace)
            fill_leftovers(client, store, namespace, store.without_selector(namespace))


def fill(
    client: KubeClient, store: Store, kind: Kind | None, namespace: str | None, *, wanted: bool = True
) -> set[Target]:
    """List one scope into the store (`kind` None: the foreign Endpoints)."""

    def read() -> set[Target]:
        if kind is None:
            store.replace_foreign(namespace, _read_foreign(client, namespace))
            return set()
        return list_into(store, client, kind, namespace, selector_of(kind, wanted=wanted))[0]

    return three_tries(read)


def _fill_routes(client: KubeClient, store: Store, namespace: str | None, *, wanted: bool) -> None:
    """List the HTTPRoutes of one scope; where no rule asks for them only if we may."""
    try:
        if wanted or may_list_routes(client, namespace):
            fill(client, store, Kind.HTTP_ROUTE, namespace, wanted=wanted)
    except CancelledError:
        raise
    except BridgeError as error:
        if wanted and not gateway.is_lasting(error):
            raise
        store.routes_unread[namespace or ""] = gateway.unread(client, namespace, error)


def list_routes(client: KubeClient, store: Store, namespaces: Namespaces, *, wanted: bool = True) -> None:
    """List the HTTPRoutes into a store; `wanted`: a rule asks for them."""
    scopes = scopes_of(namespaces)
    with ThreadPoolExecutor(max_workers=max(1, min(4, len(scopes))), thread_name_prefix="kube-list") as pool:
        for done in [pool.submit(_fill_routes, client, store, namespace, wanted=wanted) for namespace in scopes]:
            done.result()


def scopes_of(namespaces: Namespaces) -> tuple[str | None, ...]:
    return (None,) if namespaces is None else tuple(dict.fromkeys(namespaces))


def refusal_of(refused: Mapping[Kind, BridgeError]) -> str:
    """The message about a namespace that may not be listed."""
    first, *others = refused
    more = ", ".join(objects.PLURAL[kind] for kind in others)
    also = f" The same is refused for {more}; `bridge check` names all rights that are missing." if others else ""
    return f"{refused[first]}.{also} (A namespace that does not exist is refused in the same words)"


def list_once(
    client: KubeClient,
    namespaces: Namespaces,
    owner: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    partly: bool = False,
    kinds: Sequence[Kind | None] = (*SERVICE_KINDS, None),
    routes: bool | None = None,
) -> Store:
    """Read everything once, without watching: for one-shot commands. `progress` gets (lists done, lists in all).

    With `partly`, namespaces that we may not list are left out and named in the store's `unreadable`, unless they are
    all that there is. `kinds` None stands for the Endpoints of others. `routes`: HTTPRoutes as well, because a rule
    asks for them, or (False) where we may, to find those that no rule asks for any more.
    """
    store = Store(owner)
    refused: dict[str | None, dict[Kind, BridgeError]] = {}
    jobs = [(kind, namespace) for kind in kinds for namespace in scopes_of(namespaces)]
    done = 0
    with ThreadPoolExecutor(max_workers=min(4, len(jobs)), thread_name_prefix="kube-list") as pool:
        futures = [pool.submit(fill, client, store, kind, namespace) for kind, namespace in jobs]
        try:
            for (kind, namespace), future in zip(jobs, futures, strict=True):
                try:
                    future.result()
                except ForbiddenError as error:
                    refused.setdefault(namespace, {}).setdefault(kind or Kind.ENDPOINTS, error)
                    if not partly or len(refused) == len(scopes_of(namespaces)):
                        (first, *_), *_ = (list(errors.values()) for errors in refused.values())
                        raise first from None
                done += 1
                if progress is not None:
                    progress(done, len(jobs))
            if {Kind.SERVICE, Kind.ENDPOINT_SLICE} <= set(kinds):
                for namespace in scopes_of(namespaces):
                    if namespace not in refused:
                        fill_leftovers(client, store, namespace, store.without_selector(namespace))
            if routes is not None:
                list_routes(client, store, namespaces, wanted=routes)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    store.unreadable = {name or "": refusal_of(kinds_of) for name, kinds_of in sorted(refused.items())}
    return store
