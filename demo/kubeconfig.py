"""Hands k3s' kubeconfig on: one for the user's kubectl, one for the bridge, and takes both back at the end.

k3s writes a kubeconfig that names 127.0.0.1, which is right for neither: the user's port may be another one, and the
bridge sits in another container. This waits until the API server answers, writes both, and stays until it is stopped;
then it removes the user's, so that `docker compose down` leaves no credentials behind.

Needs nothing but Python. Environment: SERVER (the API server inside the network), PORT (published on the user's
loopback). Folders: /k3s (from k3s), /kube (the user's), /bridge (the bridge's).
`--check` exits 0 when both files stand: the container's health check.
"""

# ruff: noqa: T201 - what a container prints is its log
from __future__ import annotations

import base64
import os
import re
import signal
import ssl
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

SERVER = os.environ.get("SERVER", "https://kubernetes:6443")
PORT = os.environ.get("PORT", "6443")
SOURCE = Path("/k3s/kubeconfig.yaml")
USERS = Path("/kube/kubeconfig.yaml")
BRIDGES = Path("/bridge/kubeconfig.yaml")
BRIDGE_UID = 65532
RETRY_SECONDS = 0.5


def credential(text: str, key: str) -> bytes:
    """A base64 value of the kubeconfig, which k3s writes one to a line."""
    found = re.search(rf"{key}: *(\S+)", text)
    if found is None:
        raise ValueError(f"no {key} in {SOURCE} yet")
    return base64.b64decode(found[1])


def answers(text: str) -> bool:
    """Whether the API server says that it is ready, asked with the kubeconfig's own credentials."""
    context = ssl.create_default_context(cadata=credential(text, "certificate-authority-data").decode())
    with tempfile.NamedTemporaryFile() as pair:
        pair.write(credential(text, "client-certificate-data") + b"\n" + credential(text, "client-key-data"))
        pair.flush()
        context.load_cert_chain(pair.name)
    with urllib.request.urlopen(f"{SERVER}/readyz", timeout=5, context=context) as answer:
        return bool(answer.status == 200)


def write(path: Path, text: str, uid: int, gid: int) -> None:
    """Write a file that only `uid` reads, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    os.chown(new, uid, gid)
    new.replace(path)


def main() -> int:
    """Wait, write, stay, remove."""
    if sys.argv[1:] == ["--check"]:
        return 0 if USERS.exists() and BRIDGES.exists() else 1
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    for old in (USERS, BRIDGES):
        old.unlink(missing_ok=True)
    while not stop.is_set():
        try:
            text = SOURCE.read_text()
            if answers(text):
                break
        except (OSError, ValueError) as error:
            print(f"waiting for {SERVER}: {error}", flush=True)
        stop.wait(RETRY_SECONDS)
    else:
        return 0
    owner = USERS.parent.stat()
    write(BRIDGES, re.sub(r"server: \S+", f"server: {SERVER}", text), BRIDGE_UID, BRIDGE_UID)
    write(USERS, re.sub(r"server: \S+", f"server: https://127.0.0.1:{PORT}", text), owner.st_uid, owner.st_gid)
    print(f'in the checkout: export KUBECONFIG="$PWD/demo/kube/{USERS.name}"', flush=True)
    stop.wait()
    USERS.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
