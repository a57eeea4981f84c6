"""A virtual address in front of a server: `fail_over` kills every open connection silently, new ones work.

As a balancer or router that forgets: bytes of old connections are taken and lead nowhere, and neither side closes them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Failover:
    """Relays TCP from `address` (host:port) to `upstream` from when it is made until `close`."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._lock = threading.Lock()
        self._generation = 0
        self._open: set[socket.socket] = set()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="failover", daemon=True)
        self._thread.start()

    def __enter__(self) -> Failover:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def fail_over(self) -> int:
        """Every connection that is open leads nowhere from now on; how many they are."""
        with self._lock:
            self._generation += 1
            return len(self._open) // 2

    def close(self) -> None:
        """End it and every connection."""
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._open]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for thread in tuple(self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
            self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """One connection, both ways."""
        with client, server:
            with self._lock:
                generation = self._generation
                self._open |= {client, server}
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._copy, args=(server, client, generation), daemon=True)
            back.start()
            self._copy(client, server, generation)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _copy(self, source: socket.socket, target: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
