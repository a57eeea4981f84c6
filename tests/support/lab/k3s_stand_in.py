"""What runs in the image that stands in for rancher/k3s where no image can be pulled.

Towards docker-compose.yml it behaves as k3s does: `server` starts a Kubernetes on port 6443 with the names of
`--tls-san` in its certificate, writes an administrator's kubeconfig for 127.0.0.1 to $K3S_KUBECONFIG_OUTPUT, and keeps
its data and its certificates in /var/lib/rancher/k3s, so that a container that is stopped and started is the same
cluster. `kubectl` is there, the real one, as that administrator. Inside are the lab's own etcd, kube-apiserver and
kube-controller-manager: everything that the bridge talks to is real. It runs no pods: those are for
a real k3s, and for the lab's own cluster (pods/).

It runs inside the container, on nothing but Python, openssl and the binaries beside it.
"""

from __future__ import annotations

import base64
import os
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

BINARIES = Path("/opt/kubernetes")
DATA = Path("/var/lib/rancher/k3s")
DEFAULT_KUBECONFIG = Path("/etc/rancher/k3s/k3s.yaml")
SERVER = "https://127.0.0.1:6443"
STOP_SECONDS = 3.0
LAST_MADE = "accounts.key"


def main(arguments: list[str]) -> int:
    """`server [--tls-san=NAME]...`: serve until SIGTERM, or until one of the servers ends."""
    names = [a.removeprefix("--tls-san=") for a in arguments if a.startswith("--tls-san=")]
    DATA.mkdir(parents=True, exist_ok=True)
    if not (DATA / LAST_MADE).exists():
        certificates(names)
    kubeconfig = write_kubeconfig()
    *servers, controllers = commands(kubeconfig)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGCHLD, lambda *_: stop.set())
    children = [subprocess.Popen(command, cwd=DATA) for command in servers]
    while not stop.wait(0.2):
        if is_ready():  # the controller manager waits 10 s for an API server and then ends
            children.append(subprocess.Popen(controllers, cwd=DATA))
            stop.wait()
    for child in reversed(children):  # etcd last: all others still write to it as they go
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
    return 0


def is_ready() -> bool:
    """Whether the API server answers. It may be asked by anyone."""
    try:
        context = ssl.create_default_context(cafile=str(DATA / "ca.crt"))
        with urllib.request.urlopen(f"{SERVER}/readyz", timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def certificates(names: list[str]) -> None:
    """A CA, the server's certificate, an administrator's, and the key pair that signs service account tokens."""
    alternative = ",".join(f"DNS:{n}" for n in [*names, "localhost", "kubernetes.default.svc"])
    server = ["-addext", f"subjectAltName={alternative},IP:127.0.0.1,IP:10.43.0.1"]
    new = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "30"]
    by_ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    for command in (
        [*new, "-subj", "/CN=stand-in", "-keyout", "ca.key", "-out", "ca.crt"],
        [*new, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.crt", *by_ca, *server],
        [*new, "-subj", "/O=system:masters/CN=system:admin", "-keyout", "admin.key", "-out", "admin.crt", *by_ca],
        ["openssl", "genrsa", "-out", LAST_MADE, "2048"],
    ):
        subprocess.run(command, cwd=DATA, check=True, stderr=subprocess.DEVNULL)


def write_kubeconfig() -> Path:
    """The administrator's kubeconfig, one value to a line as k3s writes it; a link stands at the usual place."""

    def encoded(name: str) -> str:
        return base64.b64encode((DATA / name).read_bytes()).decode()

    text = f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {encoded("ca.crt")}
    server: {SERVER}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: {encoded("admin.crt")}
    client-key-data: {encoded("admin.key")}
"""
    path = Path(os.environ.get("K3S_KUBECONFIG_OUTPUT") or DEFAULT_KUBECONFIG)
    for folder in (path.parent, DEFAULT_KUBECONFIG.parent):
        folder.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    if path != DEFAULT_KUBECONFIG:
        DEFAULT_KUBECONFIG.unlink(missing_ok=True)
        DEFAULT_KUBECONFIG.symlink_to(path)
    return path


def commands(kubeconfig: Path) -> list[list[str]]:
    """The three servers' command lines."""
    store = "http://127.0.0.1:2379"
    return [
        [
            str(BINARIES / "etcd"),
            "--data-dir=etcd",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=error",
        ],
        [
            str(BINARIES / "kube-apiserver"),
            f"--etcd-servers={store}",
            "--secure-port=6443",
            "--tls-cert-file=server.crt",
            "--tls-private-key-file=server.key",
            "--client-ca-file=ca.crt",
            "--service-account-key-file=accounts.key",
            "--service-account-signing-key-file=accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.43.0.0/16",
            "--endpoint-reconciler-type=none",
        ],
        [
            str(BINARIES / "kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            "--controllers=endpointslice-mirroring-controller,endpointslice-controller,endpoints-controller,"
            "namespace-controller,garbage-collector-controller,serviceaccount-controller,"
            "root-ca-certificate-publisher-controller",
            "--root-ca-file=ca.crt",
            "--leader-elect=false",
        ],
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
