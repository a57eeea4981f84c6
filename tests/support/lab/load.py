"""A client that asks at a bounded rate: `python load.py ADDRESS PORT RATE`, a new connection for every request.

A line for each request that has ended: when it began and ended (seconds since the epoch), and the answer's body, or
`!` and what went wrong. Requests begin on a timetable, however long the earlier ones take, up to `WORKERS` at once.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

WORKERS = 32
TIMEOUT_SECONDS = 5.0


def ask(address: str, port: int, path: str = "/", seconds: float = TIMEOUT_SECONDS) -> str:
    """The body of a whole answer; raises OSError or ValueError where there was none."""
    with socket.create_connection((address, port), timeout=seconds) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while more := connection.recv(65536):
            received += more
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ValueError("no-answer" if not received else "cut-answer")
    return body.decode()


def main(address: str, port: int, rate: float) -> None:
    """Ask until ended."""
    began, number, lock = time.monotonic(), 0, threading.Lock()

    def work() -> None:
        nonlocal number
        while True:
            with lock:
                # What the timetable has missed while all workers waited is left out: the rate is a bound.
                number = max(number + 1, int((time.monotonic() - began) * rate))
                mine = number
            time.sleep(max(0.0, began + mine / rate - time.monotonic()))
            start = time.time()
            try:
                said = ask(address, port)
            except (OSError, ValueError) as error:
                said = f"!{type(error).__name__}:{error}".replace(" ", "_")
            with lock:
                print(f"{start:.6f} {time.time():.6f} {said}", flush=True)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
