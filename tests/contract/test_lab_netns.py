"""The rig: VMs, a node and a pod as network namespaces, and traffic that takes its real way through kube-proxy."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import Consul, Lab, LabError, netns, wait_until
from tests.support.lab.netns import Host, Rig
from tests.support.lab.traffic_testbed import VM
from tests.support.raw import ENDPOINTS, RawConsul

pytestmark = [pytest.mark.lab, pytest.mark.netns]

PORT = 8080
SERVER = f"""
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Name(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
ThreadingHTTPServer((sys.argv[2], {PORT}), Name).serve_forever()
"""
GET = """
import sys, urllib.request
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=10).read().decode())
"""

ASK = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as connection:
    connection.settimeout(float(sys.argv[2]))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("", 9999))
    try:
        connection.connect((sys.argv[1], 8095))
        connection.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        print(connection.recv(65536).decode().splitlines()[0])
    except OSError as error:
        print(error.errno or error)
"""
"""One request from one and the same port: the first line of its answer, or the error."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Three VMs with an HTTP server each that says its name."""
    if reason := netns.trouble():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Rig(3) as made:
        for vm in made.vms:
            made.start(vm, [sys.executable, "-c", SERVER, vm.name, vm.address])
        for vm in made.vms:
            wait_until(lambda vm=vm: answer(made.pod, f"http://{vm.address}:{PORT}/") == vm.name, 30, "a VM's answer")  # type: ignore[misc]
        yield made


def answer(host: Host, url: str) -> str:
    """What a host gets from an address; "" when it gets nothing."""
    return host.run(sys.executable, "-c", GET, url, check=False).stdout.strip()


def test_every_vm_has_an_address_of_its_own(rig: Rig) -> None:
    """The pod, the node and the other VMs reach each of them."""
    for host in (rig.pod, rig.node, rig.vms[0]):
        assert [answer(host, f"http://{vm.address}:{PORT}/") for vm in rig.vms] == ["vm-1", "vm-2", "vm-3"]


@pytest.mark.skipif(not netns.has_ipv6(), reason="this machine's kernel has no IPv6")
def test_every_vm_has_an_ipv6_address_too(rig: Rig) -> None:
    """The pod, the node and the other VMs reach it."""
    (vm,) = rig.vms[1:2]
    rig.start(vm, [sys.executable, str(VM), vm.name, "8090", vm.address6])
    url = f"http://[{vm.address6}]:8090/"
    wait_until(lambda: answer(rig.pod, url) == vm.name, 30, "an answer by IPv6")
    assert [answer(host, url) for host in (rig.pod, rig.node, rig.vms[0])] == [vm.name] * 3


def test_the_machine_itself_is_not_touched(rig: Rig) -> None:
    """No interface, no route, no way in from out here."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert "10.77." not in routes
    assert not {"br0", "v1", "p0"} & {line.split()[0].split("@")[0] for line in links.splitlines()}


def test_a_consul_in_the_node_checks_a_vm(rig: Rig, tmp_path: Path) -> None:
    """It is spoken to out here, its HTTP check goes to the VM, and a VM that dies turns critical."""
    consul = Consul(tmp_path / "consul")
    rig.house(consul, consul.ports["http"])
    consul.start()
    (vm,) = rig.vms[:1]
    program = rig.start(vm, [sys.executable, "-c", SERVER.replace(str(PORT), "8081"), "again", vm.address])
    try:
        with RawConsul(consul.address) as client:
            check = {"HTTP": f"http://{vm.address}:8081/", "Interval": "100ms", "Timeout": "1s"}
            service = {"Name": "web", "Address": vm.address, "Port": 8081, "Check": check}
            client.json("PUT", "/v1/agent/service/register", service)

            def status() -> str:
                """Nothing before the agent, which knows it, has told the catalog."""
                entries = client.health("web")[1]
                return next((str(c["Status"]) for e in entries for c in e["Checks"] if c["ServiceID"]), "")

            wait_until(lambda: status() == "passing", 30, "the check passing")
            program.kill()
            wait_until(lambda: status() == "critical", 30, "the check failing")
    finally:
        consul.kill()


def test_kube_proxy_spreads_over_the_ready_vms(rig: Rig, lab: Lab, namespace: str) -> None:
    """One native name: what is in Endpoints is reached through the cluster address, what is not ready is not."""
    if reason := netns.trouble(proxy=True):
        pytest.skip(reason)
    rig.kube_proxy(lab)
    ports = [{"name": "http", "port": PORT, "protocol": "TCP"}]
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}}
    base = ENDPOINTS.format(namespace=namespace)
    with lab.raw_kube() as kube:
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": ports}}
        made = kube.json("POST", f"/api/v1/namespaces/{namespace}/services", service)
        url = f"http://{made['spec']['clusterIP']}:{PORT}/"

        def put(ready: list[Host], not_ready: list[Host]) -> None:
            subset: dict[str, object] = {"ports": ports}
            for key, hosts in (("addresses", ready), ("notReadyAddresses", not_ready)):
                if hosts:
                    subset[key] = [{"ip": vm.address} for vm in hosts]
            kube.apply(f"{base}/web", {**endpoints, "subsets": [subset]})

        put(rig.vms, [])
        wait_until(lambda: answer(rig.pod, url) != "", 30, "an answer through the cluster address")
        assert {answer(rig.pod, url) for _ in range(30)} == {"vm-1", "vm-2", "vm-3"}
        assert answer(rig.node, url) != ""
        put(rig.vms[1:], rig.vms[:1])
        wait_until(
            lambda: "vm-1" not in {answer(rig.pod, url) for _ in range(10)}, 30, "an end of the unhealthy VM's answers"
        )


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_that_asks_a_cluster_address_too_early_may_ask_again_from_the_same_port(rig: Rig, family: int) -> None:
    """The first packet leaves no entry that would lead the next ones past the rules that have come meanwhile."""
    if reason := netns.trouble(proxy=True):
        pytest.skip(reason)
    if family == 6 and not netns.has_ipv6():
        pytest.skip("this machine's kernel has no IPv6")
    vm = rig.vms[0]
    kind, early, other, there, host = (
        ("ip", "10.96.3.3", "10.96.3.4", vm.address, vm.address) if family == 4
        else ("ip6", "fd00:96::3:3", "fd00:96::3:4", vm.address6, f"[{vm.address6}]")
    )  # fmt: skip
    rig.start(vm, [sys.executable, str(VM), vm.name, "8095", there])
    wait_until(lambda: answer(rig.node, f"http://{host}:8095/") == vm.name, 30, "the VM's answer")
    rig.node.run("nft", f"add table {kind} early")
    rig.node.run("nft", f"add chain {kind} early nat {{ type nat hook prerouting priority -100; }}")
    try:
        for address in (other, early):  # from the first rule on the kernel has entries of connections
            if address == early:
                assert rig.pod.python(ASK, early, "4").strip() == str(errno.ENETUNREACH)
            rig.node.run("nft", f"add rule {kind} early nat {kind} daddr {address} tcp dport 8095 dnat to {host}:8095")
        assert rig.pod.python(ASK, early, "4").strip() == "HTTP/1.1 200 OK"
    finally:
        rig.node.run("nft", f"delete table {kind} early")


def test_a_rig_leaves_nothing() -> None:
    """Its processes are gone, and with them its namespaces."""
    if reason := netns.trouble():
        pytest.skip(reason)
    with Rig(1) as small:
        pids = [small.node.pid, small.pod.pid, small.vms[0].pid]
        folder = small._folder
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not folder.exists()


def test_a_failing_command_says_where_and_why(rig: Rig) -> None:
    """The host and the words of the command."""
    with pytest.raises(LabError, match="on vm-1: ip link set nothing up"):
        rig.vms[0].run("ip", "link", "set", "nothing", "up")


def test_too_many_vms_are_refused() -> None:
    """Their addresses would not fit the subnet."""
    with pytest.raises(LabError, match="up to 200 VMs, not 201"):
        Rig(201)
