"""Labels of the cluster's namespaces, read only where a grant selects by them: that takes a cluster-wide right.

Metadata alone is read. `read_labels` serves the one-shot commands. `NamespaceLabels` keeps them up to date by one
watch; however that ends it begins with a list again, which is small. While the labels cannot be read, the last known
ones count; before they were ever read, they are unknown.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from bridge.errors import BridgeError, CancelledError, ForbiddenError, StaleError, TransientError
from bridge.kube.client import METADATA_LIST_ONLY, METADATA_ONLY, KubeClient, SilenceError
from bridge.kube.reads import SILENCE_SECONDS, pages, three_tries, watch_query
from bridge.retry import RetryPolicy
from bridge.threads import guarded_thread

PATH = "/api/v1/namespaces"
FORBIDDEN_SECONDS = 10.0
"""The least wait before namespaces are asked for again, once that was refused `FORBIDDEN_AFTER` times: an API server
that has just started refuses everything until it has read the roles."""
FORBIDDEN_AFTER = 5
SHORT_SECONDS = 1.0
"""A list and watch that ended sooner is followed by a wait, however it ended."""
NEEDED = "`namespace_selector` in `annotated` needs the right to list and watch namespaces in the cluster"
ROLE = "manifests/components/namespace-labels"

Labels = Mapping[str, Mapping[str, str]]


def read_labels(client: KubeClient) -> Labels:
    """Labels by namespace. Raises ForbiddenError when they may not be listed, TransientError without an answer."""
    return three_tries(partial(_pages, client))[0]


def refused(error: BridgeError) -> str:
    """The message where they may not be read."""
    return f"{NEEDED} ({ROLE}): {error}"


def _pages(client: KubeClient) -> tuple[Labels, str]:
    """Labels by namespace, and the version of the list."""
    found: dict[str, Mapping[str, str]] = {}
    version = ""
    for items, version in pages(client, PATH, "namespaces", accept=METADATA_LIST_ONLY):  # noqa: B007 - the last is used
        try:
            found.update(map(_labels_of, items))
        except (KeyError, TypeError, AttributeError) as error:
            raise TransientError("the list of namespaces is no Kubernetes list") from error
    return found, version


def _labels_of(item: Any) -> tuple[str, Mapping[str, str]]:
    metadata = item["metadata"]
    return str(metadata["name"]), {str(key): str(value) for key, value in (metadata.get("labels") or {}).items()}


class NamespaceLabels:
    """Follows the labels of all namespaces. Methods may be called from any thread.

    `on_change` gets all labels and the names of the namespaces whose labels differ from before, from the thread that
    watches; `failed` is called when that dies of a bug.
    """

    def __init__(
        self,
        client: KubeClient,
        on_change: Callable[[Labels, Collection[str]], None],
        retry: RetryPolicy,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._client = client.clone(connections=2)
        self._on_change = on_change
        self._retry = retry
        self._stop = threading.Event()
        self._known: dict[str, Mapping[str, str]] | None = None
        self._thread = guarded_thread("kube-watch-namespaces", self._run, failed, stop=self._stop)
        self._trouble = ""
        self.asked = threading.Event()
        """Set once the first list was answered, well or badly."""

    @property
    def trouble(self) -> str:
        """Why the labels are not known, or not up to date; "" while they are."""
        return self._trouble

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        self._stop.set()
        self._client.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            error = self._cycle()
            failures = 0 if time.monotonic() - began > SHORT_SECONDS else failures + 1
            if error is not None:
                self._trouble = self._said(error)
            self.asked.set()
            if failures:
                wait = self._retry.wait_seconds(failures, error)
                refused = isinstance(error, ForbiddenError) and failures > FORBIDDEN_AFTER
                self._stop.wait(max(wait, FORBIDDEN_SECONDS) if refused else wait)

    def _said(self, error: BridgeError) -> str:
        state = "no namespace's labels are known" if self._known is None else "the last known labels count"
        if isinstance(error, ForbiddenError):
            return f"{refused(error)}; {state}"
        return f"the labels of namespaces cannot be read, {state}: {error}"

    def _cycle(self) -> BridgeError | None:
        """List, then watch until the watch ends; the error to back off from, if any."""
        try:
            found, version = three_tries(partial(_pages, self._client))
            self._take(found)
            self._trouble = ""
            self.asked.set()
            self._watch(version)
        except (CancelledError, SilenceError):
            return None
        except BridgeError as error:
            return error
        return None

    def _take(self, found: Labels) -> None:
        before = self._known
        self._known = dict(found)
        known = before or {}
        changed = {name for name in found.keys() | known.keys() if found.get(name) != known.get(name)}
        if changed or before is None:
            self._on_change(dict(self._known), changed)

    def _watch(self, version: str) -> None:
        query = watch_query(version)
        with self._client.stream(PATH, query=query, accept=METADATA_ONLY, silence=SILENCE_SECONDS) as lines:
            for line in lines:
                self._event(line)

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["type"]
            if kind not in ("ADDED", "MODIFIED", "DELETED"):
                if kind == "BOOKMARK":
                    return
                raise StaleError(f"the watch of namespaces ended with an event of type {kind}")
            name, labels = _labels_of(event["object"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StaleError("the watch of namespaces sent nonsense") from error
        if (self._known or {}).get(name) == (None if kind == "DELETED" else labels):
            return  # mostly: of a namespace other things change
        known = dict(self._known or {})
        if kind == "DELETED":
            known.pop(name, None)
        else:
            known[name] = labels
        self._take(known)
