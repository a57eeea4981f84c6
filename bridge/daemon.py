"""The process of `bridge run` around the bridge itself: new settings are taken while it runs.

SIGHUP or a changed settings file has the settings read again. If the new ones are not valid, the old ones stay and the
error is logged. New rules for the same namespaces and datacenters are taken by the running bridge; for anything else a
new bridge follows the old one in the same process, a restart without the process: what is in Kubernetes stays as it is
meanwhile.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bridge import __version__
from bridge.config import Settings
from bridge.config.yaml_file import digest_of
from bridge.controller.controller import Controller
from bridge.core.explain import Explanation
from bridge.core.model import Rule, Skipped
from bridge.core.service_state import ServiceRow
from bridge.errors import BridgeError, ConfigurationError
from bridge.interpreter import short_switch_interval
from bridge.pipeline.scope import never_used
from bridge.telemetry.events import Observer

WATCH_SECONDS = 1.0
"""How often the settings file is compared: a ConfigMap is updated by swapping links, which no file event survives."""

RULES_GONE = (
    "{file}: there are no rules any more; a file that is half written looks the same. To mirror every service, write "
    "the rule for it (rules: [{{services: ['*']}}]); to mirror none, rules: []"
)

FIXED = ("run.listen", "run.page", "log.format", "log.level")
"""Settings that only a new process takes."""


class Log(Protocol):
    """What is needed of a structlog logger."""

    def info(self, event: str, **details: Any) -> Any: ...

    def warning(self, event: str, **details: Any) -> Any: ...

    def error(self, event: str, **details: Any) -> Any: ...


class Daemon:
    """Runs one bridge after the other until `stop`. All methods but `run` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        load: Callable[[], Settings],
        rules_of: Callable[[Settings], tuple[Rule, ...]],
        observer: Observer,
        log: Log,
    ) -> None:
        self._settings = settings
        self._load = load
        self._rules_of = rules_of
        self._observer = observer
        self._log = log
        self._lock = threading.Lock()
        self._stopping = False
        self._trouble: str | None = None
        self._rules = rules_of(settings)
        self._bridge = self._build(settings, self._rules)
        self._next: Controller | None = None
        self._watcher = _FileWatch(settings.config_file, settings.config_digest, self._reload)

    def run(self) -> None:
        """Mirror until `stop`. Raises what made a bridge end on its own."""
        self._watcher.start()
        try:
            with short_switch_interval():
                while True:
                    self._bridge.run()
                    with self._lock:
                        if self._stopping or self._next is None:
                            return
                        self._bridge, self._next = self._next, None
        finally:
            self._watcher.stop()

    def stop(self) -> None:
        """Finish the writes in flight and return from `run`."""
        with self._lock:
            self._stopping = True
            self._bridge.stop()

    def reload(self) -> None:
        """Read the settings again and go on with them; the old ones stay when the new ones cannot be used."""
        self._reload(None)

    def _reload(self, whole: bytes | None) -> None:
        """As `reload`. `whole`: the digest with which the file lay still; what has changed again is not taken."""
        with self._lock:
            if self._stopping:
                return
            try:
                fresh, rules = self._read()
            except BridgeError as error:
                self._trouble = str(error)
                self._log.error("the new settings cannot be used; the old ones stay", reason=str(error))
                self._watcher.told(whole)
                return
            if whole is not None and fresh.config_digest != whole:
                return  # the watch sees it, too
            self._watcher.told(fresh.config_digest)
            self._trouble = None
            self._go_on_with(fresh, rules)

    def _read(self) -> tuple[Settings, tuple[Rule, ...]]:
        fresh = self._load()
        if self._settings.rules is not None and fresh.rules is None:
            raise ConfigurationError(RULES_GONE.format(file=fresh.config_file))
        return fresh, self._rules_of(fresh)

    def _go_on_with(self, fresh: Settings, rules: tuple[Rule, ...]) -> None:
        changed = fresh.differences(self._settings)
        if not changed and rules == self._rules:
            self._log.info("settings read again: nothing has changed")
            return
        fixed = [key for key in changed if key in FIXED]
        if fixed:
            self._log.warning("these settings need a new process; the rest is taken", settings=", ".join(fixed))
        self._settings, self._rules = fresh, rules
        only_rules = not set(changed) - set(FIXED)
        if only_rules and self._next is None and self._bridge.replace_rules(rules):
            self._log.info("rules taken", rules=len(rules))
            self._warn(fresh, rules)
            return
        self._log.info("restarting with the new settings", changed=", ".join(changed) or "rules")
        left = self._bridge.left_behind(rules, fresh.kube_config().namespaces)
        self._next = self._build(fresh, rules, left)
        self._bridge.stop()

    # ------------------------------------------------------------------ what the web page and the metrics ask

    def healthy(self) -> tuple[bool, str]:
        return self._bridge.healthy()

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """The bridge's readiness; settings that cannot be used are in the detail, the old ones do the work."""
        ready, detail = self._bridge.ready()
        return ready, {**detail, "configuration": self._trouble or "ok"}

    def status(self) -> dict[str, Any]:
        return {**self._bridge.status(), "configuration": self._trouble or "ok", "bridge": self._about()}

    def state(self) -> dict[str, Any]:
        """The same without the report."""
        return {**self._bridge.state(), "configuration": self._trouble or "ok", "bridge": self._about()}

    def _about(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "version": __version__,
            "pod": socket.gethostname(),
            "consul_address": settings.consul_url(),
            "consul_ui": settings.run.consul_ui,
            "configuration_file": settings.config_file,
            "rules": [rule.title for rule in self._rules],
        }

    def services(self) -> list[ServiceRow]:
        return self._bridge.services()

    def unmirrored(self) -> tuple[Skipped, ...]:
        return self._bridge.unmirrored()

    def explain(self, namespace: str, name: str) -> tuple[Explanation, ...] | None:
        """Why the instances at a target are as they are; None when nothing is mirrored there."""
        return self._bridge.explain(namespace, name)

    def _build(self, settings: Settings, rules: tuple[Rule, ...], left: tuple[str, ...] = ()) -> Controller:
        self._warn(settings, rules)
        return Controller(
            consul=settings.consul_config(),
            kube=settings.kube_config(),
            rules=rules,
            options=settings.run_options(),
            observer=self._observer,
            left=left,
        )

    def _warn(self, settings: Settings, rules: tuple[Rule, ...]) -> None:
        """What is wrong with rules that can be used: said once for each set of them."""
        for later, earlier in never_used(rules, settings.consul.datacenter):
            self._log.warning("rule is never used: an earlier one takes all of it", rule=later, earlier=earlier)


class _FileWatch:
    """Calls back when a file is not what was last read of it, and is the same in two looks.

    Half of a file is a file as well: editors and `cp` write over what is there. `digest` is that of the file as it was
    read (see `told`); without a path, or with a pipe, there is nothing to watch.
    """

    def __init__(self, path: str, digest: bytes, on_change: Callable[[bytes], None]) -> None:
        self._path = path
        self._known: bytes | None = digest
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settings-file", daemon=True)

    def start(self) -> None:
        if self._path and Path(self._path).is_file():
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def told(self, digest: bytes | None) -> None:
        """What was read of the file since; None: unknown, so it is read again when it has not changed for a while."""
        self._known = digest

    def _run(self) -> None:
        before = self._content()
        while not self._stop.wait(WATCH_SECONDS):
            content = self._content()
            if content == before != self._known:
                self._on_change(content)
                if self._content() != content:  # unknown which content was read
                    self.told(None)
            before = content

    def _content(self) -> bytes:
        """A digest of the file, b"" while it cannot be read."""
        try:
            return digest_of(Path(self._path).read_bytes())
        except OSError:
            return b""
