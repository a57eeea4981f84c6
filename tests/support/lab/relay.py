"""Accepts on an inherited listening socket and connects to 127.0.0.1:PORT, each in the network it belongs to.

`python relay.py DESCRIPTOR PORT`, started by `Engine.published` inside the engine's network; see there.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until the end of it, then the end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def serve(client: socket.socket, port: int) -> None:
    """One connection, both ways; a refused one is closed."""
    with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        back = threading.Thread(target=copy, args=(server, client), daemon=True)
        back.start()
        copy(client, server)
        back.join()


def main(descriptor: int, port: int) -> None:
    """Serve forever."""
    listener = socket.socket(fileno=descriptor)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, port), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
