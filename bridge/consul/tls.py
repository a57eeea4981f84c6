"""TLS to Consul, from files that may be replaced at any time (certificates rotate)."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from bridge import certificate
from bridge.errors import ConfigurationError

LOOK_SECONDS = 1.0
"""How often the files are compared at most."""


class Tls:
    """TLS settings from files, shared by all connections, read again when a file has other content.

    `generation` counts how often that happened: a kept connection of an older one is closed before its next request.
    Raises ConfigurationError naming the file that cannot be used; once they could be used, a file that is broken or
    away for a moment leaves the last good settings in place.
    """

    def __init__(
        self,
        ca_file: str,
        client_cert: str,
        client_key: str,
        verify: bool,
        ca_path: str = "",
    ) -> None:
        self._files = ca_file, client_cert, client_key
        self._ca_path = "" if ca_file else ca_path
        self._verify = verify
        self._lock = threading.Lock()
        self._seen = self._digest()
        self._looked = time.monotonic()
        self._context = self._load()
        self._generation = 0

    def context(self) -> ssl.SSLContext:
        """What new connections use. Any thread."""
        with self._lock:
            self._look()
            return self._context

    def generation(self) -> int:
        """How often the files have changed. Any thread."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._look()
            return self._generation

    def _look(self) -> None:
        self._looked = time.monotonic()
        seen = self._digest()
        if seen != self._seen:
            with contextlib.suppress(ConfigurationError):  # half of a pair may be new: the other half follows
                self._context = self._load()
                self._generation += 1
            self._seen = seen

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for path in (*(Path(file) for file in self._files if file), *self._below_ca_path()):
            content = b""
            with contextlib.suppress(OSError):
                content = path.read_bytes()
            digest.update(b"%s\0%d\0%s" % (str(path).encode(), len(content), content))
        return digest.digest()

    def _below_ca_path(self) -> Iterator[Path]:
        """The files of the directory, in order; what begins with a dot is how Kubernetes swaps mounted files."""
        if self._ca_path:
            with contextlib.suppress(OSError):
                root = Path(self._ca_path)
                found = (path for path in root.rglob("*") if path.is_file())
                yield from sorted(p for p in found if not any(x.startswith(".") for x in p.relative_to(root).parts))

    def _load(self) -> ssl.SSLContext:
        ca_file, client_cert, client_key = self._files
        ca_files = [ca_file] if ca_file else [str(path) for path in self._below_ca_path()]
        if self._ca_path and not ca_files:
            raise ConfigurationError(f"Consul's CA directory {self._ca_path} has no file in it that can be read")
        try:
            context = ssl.create_default_context(cafile=ca_files[0] if ca_files else None)
            for ca_file in ca_files[1:]:
                context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"Consul's CA file {ca_file or ca_files[0]} cannot be used: {_why(error)}"
            ) from None
        if client_cert:
            try:
                context.load_cert_chain(client_cert, client_key or None)
            except OSError as error:
                files = f"{client_cert} and {client_key}" if client_key else client_cert
                raise ConfigurationError(f"Consul's client certificate {files} cannot be used: {_why(error)}") from None
        elif client_key:
            raise ConfigurationError("a client key for Consul needs a client certificate as well")
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def certificate_end(path: str) -> datetime | None:
    """When the (first) certificate of a PEM file ends; None when that cannot be determined."""
    with contextlib.suppress(OSError):
        return certificate.certificate_end(Path(path).read_bytes())
    return None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not PEM, or the key does not fit ({error.reason or 'no certificate in it'})"
    return error.strerror or str(error)
