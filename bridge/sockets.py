"""Options of every TCP socket to Consul and to the API server: no delay, and a peer that has gone is noticed."""

from __future__ import annotations

import socket

IDLE_SECONDS, INTERVAL_SECONDS, PROBES = 5, 3, 3
"""A peer that no longer acknowledges anything (its host or the network path is gone) breaks a connection, also one
whose request waits, after 5 + 3 * 3 = 14 s; without these, not before the request's deadline."""


def options() -> list[tuple[int, int, int]]:
    """For `setsockopt`. Systems that lack an option do without it."""
    tcp = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": IDLE_SECONDS,
        "TCP_KEEPINTVL": INTERVAL_SECONDS,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": (IDLE_SECONDS + INTERVAL_SECONDS * PROBES) * 1000,
    }
    known = [(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in tcp.items() if hasattr(socket, name)]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]
