"""The NetworkPolicy of the manifests where something enforces it: kube-router's firewall on each node."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from tests.pods.conftest import VMS, Storage
from tests.support.lab.netns import NODE
from tests.support.lab.pods.installation import Installation
from tests.support.lab.providers import binary
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

OPEN = 9999
LISTEN = f"""
import os, socket
if os.fork():
    os._exit(0)
os.setsid()
for number in range(3):
    os.close(number)
listener = socket.create_server(('0.0.0.0', {OPEN}))
listener.settimeout(180)
while True:
    listener.accept()[0].close()
"""
CONNECT = """
import socket
try:
    socket.create_connection(('{address}', {port}), 2)
    print('open')
except OSError as error:
    print('closed')
"""


def reaches(bridge: Installation, address: str, port: int) -> bool:
    """Whether the client's pod can connect."""
    return bridge.python("client", CONNECT.format(address=address, port=port)).strip() == "open"


def test_nothing_but_the_http_port_comes_in_where_policies_are_enforced(storage: Storage) -> None:
    """A second port of a replica's pod is open before, closed when enforced; probes, the page and the work go on."""
    if shutil.which("ipset") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("not installed: apt-get install --no-install-recommends ipset")
        pytest.skip("not installed: apt-get install --no-install-recommends ipset")
    since = time.time()
    pod = storage.bridge.pods()[0]
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    storage.bridge.python(name, LISTEN)
    wait_until(lambda: reaches(storage.bridge, address, OPEN), 30, "the second port being open", 0.5)

    lab = storage.cluster.lab
    kubeconfig = lab.write_kubeconfig("netpol", "lab-admin-token", server=f"https://{NODE}:{lab.apiserver.port}")
    engines = [
        storage.cluster.program_on(
            node,
            f"netpol-{node.name}",
            [
                str(binary("netpol")), f"--kubeconfig={kubeconfig}", f"--hostname-override={node.name}",
                "--service-cluster-ip-range=10.96.0.0/16", "--iptables-sync-period=10s",
            ],
            os.environ,
        )
        for node in storage.cluster.nodes
    ]  # fmt: skip
    try:
        wait_until(lambda: not reaches(storage.bridge, address, OPEN), 60, "the second port being closed", 0.5)
        assert reaches(storage.bridge, address, 9480)
        storage.cluster.maintenance("radosgw", 8, on=True)
        storage.bridge.await_addresses("radosgw", VMS - 1)
        storage.cluster.maintenance("radosgw", 8, on=False)
        storage.bridge.await_addresses("radosgw", VMS)
        assert len(storage.bridge.ready_pods()) == 2
    finally:
        for engine in engines:
            engine.stop()
    wait_until(lambda: reaches(storage.bridge, address, OPEN), 30, "the second port being open again", 0.5)
    assert storage.client.failed(since) == []
