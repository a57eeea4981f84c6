"""One service, read in four ways side by side: plainly, by two queries that wait, and by a look at the streaming view.

plain       health/service/X?consistent: the catalog itself
streaming   health/service/X?index=N&wait=..., kept waiting: the view that Consul's streaming backend keeps
view        health/service/X?index=1: the same view, now, without having waited
near        the waiting query with `near`, for which Consul asks the catalog instead of the streaming backend
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.support.raw import RawConsul

NEAR = "near=nobody-is-near-this"
WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer: its index, and {(node, id): everything else that a bridge could use}."""

    index: int
    instances: tuple[tuple[tuple[str, str], tuple[Any, ...]], ...]

    @property
    def by_key(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """As a mapping."""
        return dict(self.instances)


def shown(index: int, entries: Iterable[dict[str, Any]]) -> Shown:
    """What an answer of health/service shows."""
    found = []
    for entry in entries:
        node, service = entry["Node"], entry["Service"]
        checks = sorted((c["CheckID"], c["Status"], c["ServiceID"]) for c in entry["Checks"] or [])
        found.append((
            (node["Node"], service["ID"]),
            (node["Address"], service["Address"], service["Port"], tuple(sorted(service["Tags"] or [])),
             tuple(sorted((service["Meta"] or {}).items())), tuple(sorted((node["Meta"] or {}).items())),
             tuple(checks)),
        ))  # fmt: skip
    return Shown(index, tuple(sorted(found)))


def read(consul: RawConsul, service: str, query: str) -> Shown:
    """One question."""
    status, headers, text = consul.send("GET", f"/v1/health/service/{quote(service, safe='')}?{query}")
    if status != 200:
        raise OSError(f"{status}: {text[:200]!r}")
    return shown(int(headers["X-Consul-Index"]), json.loads(text))


class Waiter:
    """A query that waits, asked again and again, in a thread of its own; `last` is what it showed last."""

    def __init__(self, address: str, service: str, extra: str = "") -> None:
        self._consul = RawConsul(address)
        self._service = service
        self._extra = extra
        self._stop = threading.Event()
        self.last: Shown | None = None
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"waiter-{service}")
        self._thread.start()

    def _run(self) -> None:
        index = 0
        while not self._stop.is_set():
            query = f"{self._extra}&index={index}&wait={WAIT_SECONDS}s" if index else self._extra
            try:
                answer = read(self._consul, self._service, query)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._stop.is_set():
                    self.errors.append(str(error))
                    self._consul.close()
                    self._stop.wait(0.2)
                index = 0
                continue
            index = answer.index
            self.last = answer

    def close(self) -> None:
        """End it."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._consul.interrupt()
        self._thread.join()
        self._consul.close()


def kinds(plain: Shown, other: Shown) -> frozenset[str]:
    """In which ways an answer differs from the plain one."""
    truth, told = plain.by_key, other.by_key
    folded = {(node.lower(), identity.lower()) for node, identity in truth}
    found = set()
    for key in told.keys() - truth.keys():
        same = (key[0].lower(), key[1].lower()) in folded
        found.add("an instance more, same node and id in another case" if same else "an instance more, alone")
    for key in truth.keys() - told.keys():
        same = any((n.lower(), i.lower()) == (key[0].lower(), key[1].lower()) for n, i in told)
        if not same:
            found.add("an instance less")
    for key in truth.keys() & told.keys():
        if truth[key] != told[key]:
            found.add("other checks" if truth[key][:-1] == told[key][:-1] else "other values")
    return frozenset(found)
