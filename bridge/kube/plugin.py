"""Runs the credential plugin of a kubeconfig (`exec`), within a time limit, and never more than one at a time.

A plugin is another program: it may hang, wait for a keyboard, or leave children behind. So it runs in a process group
of its own that is ended after `LIMIT_SECONDS`, its renewals run on a thread of their own, and what it gave last is used
meanwhile. Only the very first run is waited for: without it there is nothing to send.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from bridge.errors import ConfigurationError
from bridge.kube import faults

LIMIT_SECONDS = 15.0
"""How long a plugin may take; an interactive login at a terminal is not limited."""
EARLY_SECONDS = 60.0
"""How long before its expiry a credential is renewed, and at most a tenth of its life."""
PAUSE_SECONDS = 5.0
"""The pause after a run that failed, or gave what was there before."""

_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_EXTENSION = "client.authentication.k8s.io/exec"


@dataclass(frozen=True, slots=True)
class Credential:
    """What a plugin gave: a token, a certificate with its key, or both. `expires_at` in seconds since the epoch."""

    token: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    expires_at: float | None = None

    def same_as(self, other: Credential) -> bool:
        """Whether the server gets the same, whatever the expiry."""
        return replace(self, expires_at=other.expires_at) == other


class PluginError(Exception):
    """A run brought no credential; the text names the plugin."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """The `exec` entry of a user, its command absolute or a bare name; `cluster` is passed where it wants that."""

    settings: Mapping[str, Any] = field(repr=False)
    cluster: Mapping[str, Any] = field(repr=False)
    file: str

    @property
    def name(self) -> str:
        """The plugin and where it is named, for messages."""
        return f"the credential plugin {self.settings['command']} (kubeconfig {self.file})"

    def run(
        self,
        *,
        at_terminal: bool = False,
        limit_seconds: float = LIMIT_SECONDS,
        started: Callable[[subprocess.Popen[bytes]], None] = lambda _process: None,
    ) -> Credential:
        """Run it once; `started` gets the process. Raises PluginError."""
        command = str(self.settings["command"])
        path = shutil.which(command)
        if path is None:
            hint = faults.trim(str(self.settings.get("installHint") or ""), 200)
            raise PluginError(
                f"{self.name} is not installed, or not executable" + (f": {hint}" if hint else "; install it")
            )
        version = str(self.settings["apiVersion"])
        if version not in _VERSIONS:
            raise PluginError(f"{self.name}: apiVersion {version} is not supported; there are {', '.join(_VERSIONS)}")
        mode = str(self.settings.get("interactiveMode") or "IfAvailable")
        if mode == "Always" and not at_terminal:
            raise PluginError(f"{self.name} wants a terminal (interactiveMode: Always), and there is none here")
        interactive = at_terminal and mode != "Never"
        output = self._output(path, version, interactive, limit_seconds, started)
        return self._credential(output, version)

    def _output(
        self,
        path: str,
        version: str,
        interactive: bool,
        limit_seconds: float,
        started: Callable[[subprocess.Popen[bytes]], None],
    ) -> bytes:
        info: dict[str, Any] = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": interactive}}
        if self.settings.get("provideClusterInfo"):
            info["spec"]["cluster"] = _told(self.cluster)
        environment = dict(os.environ)
        for entry in self.settings.get("env") or ():
            environment[str(entry["name"])] = str(entry["value"])
        environment["KUBERNETES_EXEC_INFO"] = json.dumps(info)
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own kubeconfig names it
                [path, *map(str, self.settings.get("args") or ())],
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if interactive else subprocess.PIPE,
                env=environment,
                start_new_session=not interactive,
            )
        except OSError as error:
            raise PluginError(f"{self.name} cannot be started: {error}") from error
        with process:
            started(process)
            try:
                output, said = process.communicate(timeout=None if interactive else limit_seconds)
            except subprocess.TimeoutExpired:
                _end(process)
                raise PluginError(
                    f"{self.name} did not answer within {limit_seconds:g} s and was ended; run it by hand to see why"
                ) from None
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            words = faults.trim(faults.redact((said or b"").decode("utf-8", "replace")), 200)
            raise PluginError(f"{self.name} failed with status {process.returncode}" + (f": {words}" if words else ""))
        return output

    def _credential(self, output: bytes, version: str) -> Credential:
        try:
            found = json.loads(output)
            status = found["status"]
            if found["apiVersion"] != version:
                raise PluginError(f"{self.name} answered in {found['apiVersion']}, not in {version}")
            credential = Credential(
                token=str(status.get("token") or ""),
                certificate=str(status.get("clientCertificateData") or ""),
                key=str(status.get("clientKeyData") or ""),
                expires_at=_moment(status.get("expirationTimestamp")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PluginError(f"{self.name} did not print an ExecCredential with a status") from error
        if bool(credential.certificate) != bool(credential.key):
            raise PluginError(f"{self.name} gave a certificate or a key, not both")
        if not credential.token and not credential.certificate:
            raise PluginError(f"{self.name} gave neither a token nor a certificate")
        return credential


class Renewals:
    """The credential of a plugin, renewed in the background. Thread-safe; only `first` waits for the plugin."""

    def __init__(self, plugin: Plugin, on_change: Callable[[], None]) -> None:
        """`on_change` is called, from the thread that ran the plugin, when it gave something else than before."""
        self.plugin = plugin
        self._on_change = on_change
        self._changed = threading.Condition()
        self._current = Credential()
        self._given_at = 0.0
        self._running = False
        self._not_before = float("-inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self.trouble = ""
        """Why the last run brought nothing, "" when it did."""

    def first(self) -> Credential:
        """Run it and wait. Raises ConfigurationError."""
        try:
            self._take(self.plugin.run(at_terminal=_at_terminal(), limit_seconds=LIMIT_SECONDS))
        except PluginError as error:
            raise ConfigurationError(str(error)) from error
        return self._current

    def current(self) -> Credential:
        """What it gave last; near its expiry a renewal is begun."""
        if self._due():
            self._begin()
        return self._current

    def renew(self, used: Credential, wait_seconds: float) -> bool:
        """The server refused `used`: whether there is another credential now, after a run of at most `wait_seconds`.

        Only the caller that begins the run waits for it.
        """
        if used != self._current:
            return True
        if self._begin():
            with self._changed:
                self._changed.wait_for(lambda: not self._running, wait_seconds)
        return used != self._current

    def close(self) -> None:
        """End a run that is under way: who hangs must not outlive us."""
        with self._changed:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                _end(self._process)

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._process = process
            if self._closed:
                _end(process)

    def _due(self) -> bool:
        expires_at = self._current.expires_at
        if expires_at is None:
            return False
        early = min(EARLY_SECONDS, 0.1 * max(0.0, expires_at - self._given_at))
        return time.time() >= expires_at - early

    def _begin(self) -> bool:
        with self._changed:
            if self._running or self._closed or time.monotonic() < self._not_before:
                return False
            self._running = True
        threading.Thread(target=self._run, name="kube-credentials", daemon=True).start()
        return True

    def _run(self) -> None:
        before = self._current
        try:
            self._take(self.plugin.run(limit_seconds=LIMIT_SECONDS, started=self._started))
        except PluginError as error:
            self.trouble = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next request tries again
            self.trouble = f"{self.plugin.name} cannot be run: {faults.trim(faults.redact(str(error)), 200)}"
        finally:
            with self._changed:
                self._running = False
                # neither what is due again at once nor what was refused already may run the plugin all the time
                idle = self.trouble or self._due() or self._current.same_as(before)
                self._not_before = time.monotonic() + (PAUSE_SECONDS if idle else 0.0)
                self._changed.notify_all()
        if self._current != before:
            self._on_change()

    def _take(self, credential: Credential) -> None:
        self._given_at = time.time()
        self._current = credential
        self.trouble = ""


def _at_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError):
        return sys.stdin.isatty()
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and its children, so that no pipe stays open."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _told(cluster: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ours, theirs in (
        ("server", "server"),
        ("tls-server-name", "tls-server-name"),
        ("insecure-skip-tls-verify", "insecure-skip-tls-verify"),
        ("certificate-authority-data", "certificate-authority-data"),
        ("proxy-url", "proxy-url"),
    ):
        if cluster.get(ours):
            found[theirs] = cluster[ours]
    for extension in cluster.get("extensions") or ():
        if isinstance(extension, dict) and extension.get("name") == _EXTENSION:
            found["config"] = extension.get("extension")
    return found


def _moment(text: object) -> float | None:
    if not text:
        return None
    moment = datetime.fromisoformat(str(text))
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
