"""What runs on a VM of a testbed: `python vm.py NAME PORT ADDRESS...` answers every GET with its name.

GET /N is answered after N seconds.

It is a plain server that knows no farewell: whatever is connected when it is ended gets an error. That no client is
connected then is what the tests are about.
"""

from __future__ import annotations

import socket
import sys
import threading
import time


def answer(connection: socket.socket, body: bytes) -> None:
    """One request, one answer, the end."""
    with connection:
        connection.settimeout(10)
        try:
            received = b""
            while b"\r\n\r\n" not in received:
                more = connection.recv(65536)
                if not more:
                    return
                received += more
            path = received.split(b" ", 2)[1]
            time.sleep(float(path[1:] or 0))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
        except OSError:
            return


def serve(name: str, address: str, port: int) -> None:
    """Serve at one address forever."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=256)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, name.encode()), daemon=True).start()


def main(name: str, port: int, *addresses: str) -> None:
    """Serve at all of them."""
    for address in addresses[1:]:
        threading.Thread(target=serve, args=(name, address, port), daemon=True).start()
    serve(name, addresses[0], port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
