"""The lab's servers as containers: Consul in one, k3s (etcd or its like, API server, controllers) in another.

Folders are mounted under their own paths and ports keep their numbers, so that what servers.py says about data,
certificates and addresses holds here too. A container has a label with its lab's folder: the lab's reaper removes what
has it when the test process is killed, so testcontainers' own reaper, one more image, is not needed.
"""

from __future__ import annotations

import base64
import os
import signal
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.lab.build import LabError
from tests.support.lab.providers import images
from tests.support.lab.servers import AUDIT_MEGABYTES, ApiServer, Consul, ControllerManager, Etcd, Server, answers

if TYPE_CHECKING:
    from tests.support.lab import Lab

LABEL = "bridge-lab"
STOP_SECONDS = 10
INSIDE = 6443


def clean_up_command(folder: Path) -> str:
    """What the reaper runs, in a shell, when its lab cannot any more."""
    return f"docker ps -aq --filter label={LABEL}={folder} | xargs -r docker rm -f"


def house(lab: Lab) -> None:
    """Give a lab that has not started these servers instead of its own."""
    consul_image, k3s_image = images(os.environ)
    lab.consul = ContainerConsul(lab.consul, consul_image, lab.folder)
    apiserver = K3s(lab.folder / "k3s", lab.etcd, lab.files, k3s_image, lab.folder)
    lab.apiserver = apiserver
    lab.etcd = InsideEtcd(lab.folder / "k3s")
    context = ssl.create_default_context()
    lab.controllers = InsideControllers(lab.folder / "k3s", lab.kubeconfig, lab.files, context)


def settle(lab: Lab) -> None:
    """After the start: the cluster's own kubeconfig and certificate authority become the lab's."""
    assert isinstance(lab.apiserver, K3s)
    lab.kubeconfig, lab.ca_file = lab.apiserver.take_kubeconfig(lab.kubeconfig)


class _Container(Server):
    """A server whose process is a container."""

    image = ""
    lab_folder = Path()
    in_memory: Sequence[str] = ()
    _container: Any = None

    def options(self) -> dict[str, Any]:
        """Further arguments of docker-py's `create`."""
        return {}

    def bound(self) -> Mapping[int, int]:
        """Ports inside and out here."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables of the container."""
        return {}

    def start(self, wait: bool = True) -> None:
        """Make the container at the first time, start it again after that."""
        if self.running:
            raise LabError(f"{self.program} runs already")
        if self._container is None:
            self._create()
        else:
            self._container.start()
        if wait:
            self.wait_ready()

    def _create(self) -> None:
        from testcontainers.core.config import testcontainers_config  # here: it asks for an engine when imported
        from testcontainers.core.container import DockerContainer

        testcontainers_config.ryuk_disabled = True
        made = DockerContainer(self.image).with_command(list(self.arguments())).with_envs(**self.environment())
        made.with_volume_mapping(str(self.lab_folder), str(self.lab_folder), "rw")
        # with_bind_ports knows no address, and would publish to the whole network.
        ports: dict[Any, Any] = made.ports
        ports.update({inside: ("127.0.0.1", outside) for inside, outside in self.bound().items()})
        for place in self.in_memory:
            made.with_tmpfs_mount(place)
        made.with_kwargs(labels={LABEL: str(self.lab_folder)}, **self.options())
        try:
            made.start()
        finally:  # one that was made and did not start is there, too
            self._container = made.get_wrapped_container()

    @property
    def running(self) -> bool:
        if self._container is None:
            return False
        self._container.reload()
        return self._container.status in ("running", "paused")

    @property
    def pid(self) -> int:
        raise LabError(f"{self.program} runs in a container: it has no process id out here")

    def log_end(self, characters: int = 2000) -> str:
        if self._container is None:
            return ""
        text: str = self._container.logs(tail=200).decode(errors="replace")
        return text[-characters:]

    def pause(self) -> None:
        """Freeze every process of the container."""
        self._container.pause()

    def resume(self) -> None:
        self._container.unpause()

    def _end(self, how: signal.Signals) -> None:
        if not self.running:
            return
        if self._container.status == "paused":
            self._container.unpause()
        if how == signal.SIGKILL:
            self._container.kill()
        else:
            self._container.stop(timeout=STOP_SECONDS)
        self._container.wait(timeout=STOP_SECONDS)

    def remove(self) -> None:
        """End it for good; its log goes to the lab's folder first."""
        if self._container is not None:
            self.log.write_text(self.log_end(1_000_000))
            self._container.remove(force=True, v=True)
            self._container = None


class ContainerConsul(_Container, Consul):
    """Consul as a container, with the settings and ports of one that was not started."""

    def __init__(self, plan: Consul, image: str, lab_folder: Path) -> None:
        vars(self).update(vars(plan))
        self.image = image
        self.lab_folder = lab_folder

    def arguments(self) -> Sequence[str]:
        self.settings = {"bind_addr": '{{ GetInterfaceIP "eth0" }}', "client_addr": "0.0.0.0", **self.settings}
        return Consul.arguments(self)

    def bound(self) -> Mapping[int, int]:
        return {port: port for name, port in self.ports.items() if name in ("http", "https")}

    def options(self) -> dict[str, Any]:
        # Not the image's own start script: it would give up our user, who owns the folder.
        return {"entrypoint": ["consul"], "user": f"{os.getuid()}:{os.getgid()}"}


class K3s(_Container, ApiServer):
    """k3s without its agent: nothing but the control plane, which needs no privileges."""

    program = "k3s"
    in_memory = ("/run", "/var/run")

    def __init__(self, folder: Path, etcd: Etcd, files: Mapping[str, Path], image: str, lab_folder: Path) -> None:
        super().__init__(folder, etcd, files, None)
        self.image = image
        self.lab_folder = lab_folder
        self._written = folder / "k3s.yaml"
        self._target: Path | None = None

    def arguments(self) -> Sequence[str]:
        return (
            "server", "--disable-agent", "--disable=traefik,coredns,servicelb,metrics-server,local-storage",
            "--tls-san=127.0.0.1", f"--kube-apiserver-arg=audit-log-path={self.audit_log}",
            f"--kube-apiserver-arg=audit-policy-file={self.folder / 'audit.json'}",
            f"--kube-apiserver-arg=audit-log-maxsize={AUDIT_MEGABYTES}",
            "--kube-controller-manager-arg=kube-api-qps=500", "--kube-controller-manager-arg=kube-api-burst=1000",
        )  # fmt: skip

    def bound(self) -> Mapping[int, int]:
        return {INSIDE: self.port}

    def start(self, wait: bool = True) -> None:
        """As any server; what it writes again for its administrator is taken over."""
        super().start(wait)
        if wait and self._target is not None:
            self.take_kubeconfig(self._target)

    def environment(self) -> Mapping[str, str]:
        return {"K3S_KUBECONFIG_OUTPUT": str(self._written), "K3S_KUBECONFIG_MODE": "644"}

    def is_ready(self) -> bool:
        """Answers with its own certificate, and the namespace `default` is there."""
        try:
            context = _client(yaml.safe_load(self._written.read_text()), self.folder)
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            return False  # not written, or not yet whole
        return answers(f"{self.url}/api/v1/namespaces/default", context)

    def take_kubeconfig(self, target: Path) -> tuple[Path, Path]:
        """The administrator's kubeconfig with the address out here, and the certificate authority's file."""
        self._target = target
        config = yaml.safe_load(self._written.read_text())
        (cluster,) = (entry["cluster"] for entry in config["clusters"])
        cluster["server"] = self.url
        target.write_text(yaml.safe_dump(config))
        authority = self.folder / "ca.pem"
        authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        return target, authority


class _Inside(Server):
    """A part of the k3s container: it comes and goes with it."""

    borrowed = True

    def _must_be_ours(self) -> None:
        raise LabError(f"{self.program} is a part of the k3s container: stop `lab.apiserver`, or take Lab(own=True)")

    @property
    def running(self) -> bool:
        return False


class InsideEtcd(_Inside, Etcd):
    """k3s' store."""


class InsideControllers(_Inside, ControllerManager):
    """k3s' controllers."""


def _client(config: Mapping[str, Any], folder: Path) -> ssl.SSLContext:
    """TLS as the kubeconfig's administrator."""
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    pair = folder / "admin.pem"
    pair.touch(mode=0o600)
    pair.write_bytes(
        base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
    )
    context.load_cert_chain(pair)
    return context


def remove(servers: Sequence[Server]) -> None:
    """Remove the containers among these."""
    for server in servers:
        if isinstance(server, _Container):
            server.remove()
