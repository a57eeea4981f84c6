"""The last part of `make demo REAL=1`: the bridge as it is deployed, and a pod that asks by name."""

from __future__ import annotations

import time
from typing import Protocol

from tests.support.lab import LabError
from tests.support.lab.pods import Cluster, prepare
from tests.support.lab.pods.installation import Installation
from tests.support.lab.servers import wait_until

SERVICE, PORT = "radosgw", 8080
RATE = 50.0
REQUESTS = 240
"""Each goes to a VM by chance: with so many no VM is left out, but for once in a hundred million times."""
AFTER = 40
VICTIM = 3
RULES = f"""rules:
  - services: [{SERVICE}]
    to: {{port: {PORT}, port_name: http}}
"""


class Teller(Protocol):
    """Shows a story step by step."""

    def say(self, text: str) -> None:
        """A heading."""

    def note(self, text: str) -> None:
        """A sentence below it."""

    def shell(self, command: str) -> None:
        """A command as a user would type it."""


def story(teller: Teller) -> None:
    """Start a cluster with a node, tell the story in it, and end it; where none can run the reason is reported."""
    teller.say("The same in a cluster that runs pods: a node, twelve VMs outside of it, and their Consul")
    try:
        prepare()
    except LabError as error:
        teller.note(f"not on this machine: {error}")
        return
    began = time.monotonic()
    with Cluster(nodes=1) as cluster:
        teller.note(f"up in {time.monotonic() - began:.1f} s")
        tell(teller, cluster, "storage")
    teller.say("Done: the node, the VMs and every server have ended, nothing is left")


def tell(teller: Teller, cluster: Cluster, namespace: str) -> None:
    """Install the bridge as shipped in a new namespace; then a VM dies while a pod asks."""
    bridge = Installation(cluster, namespace)
    bridge.make_namespace()
    teller.say("The bridge is installed by the manifests as shipped")
    teller.shell(f"kubectl --namespace {namespace} apply --server-side --kustomize manifests/overlays/mine")
    teller.note(f"two replicas are ready after {bridge.install(rules=RULES):.1f} s")
    bridge.await_addresses(SERVICE, len(cluster.rig.vms))
    teller.say(f"A pod asks for http://{SERVICE}:{PORT} by name, {RATE:.0f} times a second")
    client = bridge.client(SERVICE, PORT, RATE)
    client.await_calm(REQUESTS)
    answers = client.answers()
    names = sorted(answers, key=lambda vm: (len(vm), vm))
    teller.note(f"{answers.total()} answers, of {len(answers)} VMs: {', '.join(names)}")
    teller.say("A VM's server dies (kill -9), and the pod goes on asking")
    killed = time.time()
    cluster.servers[VICTIM, PORT].kill()
    bridge.await_addresses(SERVICE, len(cluster.rig.vms) - 1)
    gone = time.time()
    wait_until(lambda: client.answers(gone).total() >= AFTER, 60, f"{AFTER} answers by all others")
    asked, failed = len(client.requests(killed)), client.failed(killed)
    teller.note(f"after {gone - killed:.1f} s its address is not ready any more: Consul's check had to fail first")
    teller.note(f"{asked} requests since the kill, {len(failed)} of them failed")
