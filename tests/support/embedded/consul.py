"""The fake Consul with an agent: services registered with HTTP checks, which it runs as Consul 1.22 does.

A check is asked every `Interval` on a connection of its own: a status of 200 to 299 is passing, 429 is warning, another
one, and no answer within `Timeout`, is critical. The catalog gets it when the status changes.
"""

from __future__ import annotations

import http.client
import random
import threading
from urllib.parse import unquote, urlsplit

from tests.support.fakes.consul import FakeConsul, Json, seconds_of

NODE = "embedded-1"
REGISTER = "/v1/agent/service/register"
DEREGISTER = "/v1/agent/service/deregister/"
OUTPUT_CHARACTERS = 4096


class EmbeddedConsul(FakeConsul):
    """A context manager, as the fake; it lists itself as a server does."""

    def __init__(self) -> None:
        super().__init__()
        self._checks: dict[str, _HttpCheck] = {}
        """By the service's id. Only the newest check of a service may tell the catalog."""
        self._agent = threading.Lock()
        self.change(
            lambda catalog: catalog.register({
                "Node": NODE, "Address": "127.0.0.1", "Service": {"ID": "consul", "Service": "consul", "Port": 8300},
                "Check": {"CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing"},
            })
        )  # fmt: skip

    def put(self, path: str, body: Json) -> bool:
        """The agent's own requests beside the catalog's."""
        if path == REGISTER:
            self._register(body)
        elif path.startswith(DEREGISTER):
            self._deregister(unquote(path.removeprefix(DEREGISTER)))
        else:
            return super().put(path, body)
        return True

    def close(self) -> None:
        with self._agent:
            checks, self._checks = self._checks, {}
        for check in checks.values():
            check.end()
        super().close()

    def _register(self, body: Json) -> None:
        identity = body.get("ID") or body["Name"]
        service = {k: v for k, v in body.items() if k not in ("Name", "Check", "Checks")}
        wanted = body.get("Check") or {}
        entry: Json = {
            "Node": NODE, "SkipNodeUpdate": True, "Service": {**service, "ID": identity, "Service": body["Name"]},
        }  # fmt: skip
        check = _HttpCheck(self, identity, wanted) if wanted.get("HTTP") else None
        if check is not None:
            entry["Check"] = check.entry
        with self._agent:
            before = self._checks.pop(identity, None)
            if check is not None:
                self._checks[identity] = check
        if before is not None:
            before.end()
        self.change(lambda catalog: catalog.register(entry))
        if check is not None:
            check.begin()

    def _deregister(self, identity: str) -> None:
        with self._agent:
            check = self._checks.pop(identity, None)
        if check is not None:
            check.end()
        self.change(lambda catalog: catalog.deregister({"Node": NODE, "ServiceID": identity}))


class _HttpCheck:
    """One check, and the thread that runs it."""

    def __init__(self, consul: EmbeddedConsul, service_id: str, wanted: Json) -> None:
        identity = wanted.get("CheckID") or f"service:{service_id}"
        self.entry: Json = {
            "CheckID": identity, "Name": wanted.get("Name") or f"Service '{service_id}' check", "ServiceID": service_id,
            "Status": wanted.get("Status") or "critical", "Output": "",
        }  # fmt: skip
        self._url = str(wanted["HTTP"])
        self._interval_seconds = seconds_of(str(wanted["Interval"]))
        self._timeout_seconds = seconds_of(str(wanted.get("Timeout") or "10s"))
        self._consul = consul
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"check-{identity}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        # Not all at once: the first comes at some time within the interval.
        wait = random.uniform(0, self._interval_seconds)
        while not self._ended.wait(wait):
            wait = self._interval_seconds
            status, output = self._ask()
            first = not self.entry["Output"]
            if (first or status != self.entry["Status"]) and not self._ended.is_set():
                self.entry = entry = {**self.entry, "Status": status, "Output": output}
                self._consul.change(lambda catalog, check=entry: catalog.register({  # type: ignore[misc]
                    "Node": NODE, "SkipNodeUpdate": True, "Check": check,
                }))  # fmt: skip

    def _ask(self) -> tuple[str, str]:
        parts = urlsplit(self._url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self._timeout_seconds)
        try:
            connection.request("GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")
            answer = connection.getresponse()
            body = answer.read(OUTPUT_CHARACTERS).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return "critical", f'Get "{self._url}": {error}'
        finally:
            connection.close()
        status = "passing" if 200 <= answer.status < 300 else "warning" if answer.status == 429 else "critical"
        return status, f"HTTP GET {self._url}: {answer.status} {answer.reason} Output: {body}"
