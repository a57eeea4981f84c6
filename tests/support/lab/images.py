"""The images that the container tests run: the bridge's own, and stand-ins for what cannot be pulled.

On an engine that can pull, the real images are used. Elsewhere python:slim is Debian's Python, consul the lab's binary,
and k3s the lab's Kubernetes behind k3s' manners (`k3s_stand_in`). The bridge's image is always built from this checkout
by its unchanged Dockerfile; its wheels come along, so the build needs no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pytest

from tests.support.lab.build import cache
from tests.support.lab.engine import Engine, NoEngineError, engine
from tests.support.lab.providers import binary

ROOT = Path(__file__).resolve().parents[3]
CONSUL_IMAGE = "hashicorp/consul:1.22.0"
K3S_IMAGE = "rancher/k3s:v1.36.4-k3s1"
KUBERNETES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")

_STAND_IN = """FROM {base}
COPY {binaries} /opt/kubernetes/
COPY k3s_stand_in.py /opt/
ENV KUBECONFIG=/etc/rancher/k3s/k3s.yaml
ENV PATH=/opt/kubernetes:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["python3", "/opt/k3s_stand_in.py"]
"""

EPOCH = 1767323045
"""When the images under test say that they were made, as SOURCE_DATE_EPOCH."""
LOCKS = ("build", "image", "sbom")

# Not copied into a build context even before .dockerignore: large, and never wanted.
_BULK = (
    ".venv",
    ".git",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".pytest_cache",
    "__pycache__",
    ".lab",
    "node_modules",
)


class Images:
    """Builds each image at its first use and gives its name."""

    def __init__(self, engine: Engine, cache: Path) -> None:
        self.engine = engine
        self._cache = cache
        self._folders: list[Path] = []
        self.manifests: dict[str, str] = {}
        """Digests of the manifests of the images that were built here, by tag."""

    @cached_property
    def python(self) -> str:
        """What the Dockerfile builds on."""
        return self.engine.python_base(self._cache)

    @cached_property
    def consul(self) -> str:
        """Consul, as docker-compose.yml uses it."""
        if self.engine.has_or_pulls(CONSUL_IMAGE):
            return CONSUL_IMAGE
        return self.engine.static_image("bridge-lab/consul:1", binary("consul"))

    @cached_property
    def kubernetes(self) -> str:
        """k3s, or what behaves like it."""
        if self.engine.has_or_pulls(K3S_IMAGE):
            return K3S_IMAGE
        tag = "bridge-lab/k3s:1"
        with tempfile.TemporaryDirectory(prefix="bridge-image-") as folder:
            context = Path(folder)
            for name in KUBERNETES:
                shutil.copy2(binary(name), context / name)
            shutil.copy2(Path(__file__).with_name("k3s_stand_in.py"), context)
            text = _STAND_IN.format(base=self.python, binaries=" ".join(KUBERNETES))
            (context / "Dockerfile").write_text(text)
            self.engine.docker("build", "--quiet", "--tag", tag, folder)
        return tag

    @cached_property
    def bridge(self) -> str:
        """The bridge's image, from this checkout."""
        return self._build("bridge-lab/bridge:1")

    @cached_property
    def bridge_again(self) -> str:
        """The same, built once more from nothing."""
        return self._build("bridge-lab/bridge:2", "--no-cache")

    def _build(self, tag: str, *options: str) -> str:
        with self.context() as folder:
            self.wheels(folder / "wheelhouse")
            arguments = [f"BASE={self.python}", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheelhouse", "REVISION=under-test"]
            arguments += ["SOURCE=https://example.com/bridge", "CREATED=2026-01-02T03:04:05Z"]
            arguments += ["BASE_NAME=under-test", "BASE_DIGEST=sha256:under-test", f"SOURCE_DATE_EPOCH={EPOCH}"]
            settings = [word for argument in arguments for word in ("--build-arg", argument)]
            built = folder / "image-id"
            self.engine.docker("build", *options, *settings, "--iidfile", str(built), str(folder))
            self._rewrite(built.read_text().strip(), tag)
        return tag

    def _rewrite(self, built: str, tag: str) -> None:
        """As `make image` does: by image/reproducible.py, whatever the engine noted of the build."""
        command = f"docker save {built} | {sys.executable} image/reproducible.py {EPOCH} {tag} | docker load"
        said = self.engine.run("sh", "-c", command, cwd=ROOT)
        self.manifests[tag] = said.partition("its manifest ")[2].split()[0]
        if json.loads(self.engine.docker("image", "inspect", tag))[0]["Id"] != built:
            self.engine.docker("image", "rm", built)

    @contextlib.contextmanager
    def context(self) -> Iterator[Path]:
        """A copy of the checkout as a build context, to which a test may add."""
        with tempfile.TemporaryDirectory(prefix="bridge-context-") as folder:
            target = Path(folder) / "checkout"
            shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*_BULK), symlinks=True)
            yield target

    def wheels(self, folder: Path) -> None:
        """Put the locked wheels for the base image's Python into a folder."""
        shutil.copytree(self._wheels, folder)

    @cached_property
    def _wheels(self) -> Path:
        """Downloaded once, by hash."""
        folder = Path(tempfile.mkdtemp(prefix="bridge-wheels-"))
        self._folders.append(folder)
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = self.engine.docker("run", "--rm", self.python, "python", "-c", code).strip()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--python-version", version]
        command += ["--dest", str(folder)]
        for lock in LOCKS:  # one at a time: what the bridge runs on and what only builds it may differ in versions
            subprocess.run([*command, "-r", f"requirements/{lock}.txt"], cwd=ROOT, check=True)
        return folder

    def remove(self) -> None:
        """Remove what was made, and what was built from a user's engine; a private one goes as a whole."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        if self.engine.private:
            return
        built = [v for k, v in vars(self).items() if isinstance(v, str) and v.startswith("bridge-lab/")]
        if built:
            self.engine.docker("image", "rm", "--force", *built, check=False)


def compose_command() -> tuple[str, ...]:
    """How to call Docker Compose v2 here: the plugin, or the lab's own build of it."""
    with contextlib.suppress(OSError):
        done = subprocess.run(("docker", "compose", "version", "--short"), capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip().lstrip("v") >= "2":
            return ("docker", "compose")
    return (str(binary("docker-compose")),)


def compose_plugin(engine: Engine, folder: Path) -> Mapping[str, str]:
    """Variables under which `docker compose` works as people type it; what that takes is put into `folder`."""
    if compose_command()[0] == "docker":
        return {}
    config = folder / "docker-config"
    theirs = Path(engine.environment.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if theirs.is_dir():
        shutil.copytree(theirs, config, symlinks=True)
    (config / "cli-plugins").mkdir(parents=True, exist_ok=True)
    (config / "cli-plugins" / "docker-compose").symlink_to(binary("docker-compose"))
    return {"DOCKER_CONFIG": str(config)}


_SHARED = pytest.StashKey[Images]()


def shared(config: pytest.Config) -> Images:
    """The images of this test run, one engine for all of it; skips where none can be had, fails instead in CI."""
    if _SHARED not in config.stash:
        stack = contextlib.ExitStack()
        try:
            images = Images(stack.enter_context(engine()), cache().parent)
        except NoEngineError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))
        stack.callback(images.remove)
        config.add_cleanup(stack.close)
        config.stash[_SHARED] = images
    return config.stash[_SHARED]
