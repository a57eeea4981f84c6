"""One node: containerd and kubelet behind namespaces of their own (node.sh), on one of the rig's machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.lab.build import LabError
from tests.support.lab.netns import COMMAND_SECONDS, Host, Rig
from tests.support.lab.pods import cgroups, image_store
from tests.support.lab.providers import binary
from tests.support.lab.servers import Program

DNS = "10.96.0.10"
PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
_NEEDED_PLUGINS = ("ptp", "host-local", "loopback")
_PERCENT_LEFT = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree")


def plugins() -> Path | None:
    """Where the CNI plugins are."""
    places = (Path(place) for place in PLUGINS)
    return next((place for place in places if all((place / name).exists() for name in _NEEDED_PLUGINS)), None)


class Node:
    """A node of the cluster. `pods`: the subnet of its pods; `folder` has its logs and those of its pods."""

    def __init__(self, rig: Rig, host: Host, number: int, lab: Path) -> None:
        self.name, self.host = host.name, host
        self.pods = f"10.79.{number}.0/24"
        self.folder = lab / "nodes" / host.name
        self.logs = self.folder / "pods-logs"
        self.groups: list[Path] = []
        self._rig = rig
        self._lab = lab
        self._program: Program | None = None

    def prepare(self, kubeconfig: Path, files: Mapping[str, Path]) -> None:
        """Write its settings, take its images, let packets find its pods. `kubeconfig`: the kubelet's own."""
        for name in ("cni", "kubelet"):
            (self.folder / name).mkdir(parents=True)
        image_store.copy(self.folder / "containerd")
        shutil.copy2(kubeconfig, self.folder / "kubelet.kubeconfig")
        (self.folder / "address").write_text(self.host.address)
        (self.folder / "resolv.conf").write_text("")
        (self.folder / "containerd.toml").write_text(self._containerd())
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet(files)))
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(self._network()))
        self._rig.node.run("ip", "route", "add", self.pods, "via", self.host.address)

    def start(self) -> None:
        """Start it, the first time or after `kill`."""
        cgroups.remove(self.groups)
        self.groups = cgroups.make(self._lab, self.name)
        (self.folder / "cgroups").write_text("".join(f"{group}\n" for group in self.groups))
        script = str(Path(__file__).with_name("node.sh"))
        command = [script, self.name, str(self.folder), str(binary("kubelet"))]
        self._program = self._rig.start(self.host, command, os.environ, name=f"{self.name}-machine")

    def kill(self) -> None:
        """As a power cut: every process on it is gone, without a farewell. Its pods' logs stay."""
        if self._program is not None:
            self._program.kill()

    def close(self) -> None:
        """End it, and remove its cgroups."""
        self.kill()
        cgroups.remove(self.groups)

    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command in its namespaces to its end; what it printed. Raises LabError."""
        if self._program is None:
            raise LabError(f"{self.name} does not run")
        outside = self._program.pid
        inside = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()[0]
        enter = ("nsenter", f"--target={inside}", "-m", "-p", "-n", "-u", "-i", "-C", "--")
        done = subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise LabError(f"on {self.name}: {' '.join(command)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def process_of(self, container: str) -> int:
        """The first process of a container (its id as a Pod's status has it), as this node counts processes."""
        name = container.rpartition("/")[2]
        for line in self.run("ctr", "--namespace", "k8s.io", "tasks", "list").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
        raise LabError(f"on {self.name} no container {name} runs")

    def _containerd(self) -> str:
        """A pause process wants -998 as its oom_score_adj; who has no CAP_SYS_RESOURCE cannot lower it."""
        return f"""version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image_store.PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins()}"
conf_dir = "{self.folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""

    def _kubelet(self, files: Mapping[str, Path]) -> dict[str, object]:
        """Images cannot be pulled, so none may be collected, and no pod is evicted when this machine's disk is full."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "failCgroupV1": False, "cgroupDriver": "cgroupfs", "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False}, "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(files["users-ca.pem"])},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS], "clusterDomain": "cluster.local", "resolvConf": str(self.folder / "resolv.conf"),
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": dict.fromkeys(_PERCENT_LEFT, "0%"),
            "podLogsDir": str(self.logs), "volumePluginDir": str(self.folder / "volume-plugins"),
            "makeIPTablesUtilChains": False, "maxPods": 40,
        }  # fmt: skip

    def _network(self) -> dict[str, object]:
        """Pods by point-to-point links; the way between nodes is a route of the rig's node."""
        addresses = {
            "type": "host-local", "dataDir": str(self.folder / "addresses"), "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }  # fmt: skip
        return {
            "cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}],
        }  # fmt: skip
