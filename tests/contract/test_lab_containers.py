"""The lab from containers (LAB_PROVIDER=docker): the same face, the same obedience, nothing left behind.

Where no image can be pulled, k3s is the stand-in of images.py; Consul is the real one either way.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.demo.terminal import STEPS, headings
from tests.support.lab import wait_until
from tests.support.lab.build import ROOT
from tests.support.lab.images import Images, shared

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]  # the images may be made here

STORY = """
from tests.support.lab import Lab, LabError
with Lab() as lab:
    with lab.raw_consul() as consul:
        consul.register("web", "vm-1", "192.0.2.1", 8080)
    lab.consul.kill()
    assert not lab.consul.running
    lab.consul.start()
    with lab.raw_consul() as consul:
        assert set(consul.services()) == {"consul", "web"}
    lab.consul.restart(empty=True)
    with lab.raw_consul() as consul:
        assert set(consul.services()) == {"consul"}
    lab.consul.pause()
    assert not lab.consul.is_ready()
    lab.consul.resume()
    lab.consul.wait_ready()
    lab.apiserver.restart()
    rules = [{"apiGroups": [""], "resources": ["endpoints"], "verbs": ["list"]}]
    with lab.raw_kube(lab.service_account("default", "reader", rules)) as kube:
        kube.json("GET", "/api/v1/namespaces/default/endpoints")
    try:
        lab.etcd.kill()
    except LabError:
        print("kept")
"""
KILLED = "import os; from tests.support.lab import Lab; lab = Lab().start(); os.kill(os.getpid(), 9)"


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> Images:
    """An engine with the two images; skips where there can be none."""
    return shared(request.config)


def python(images: Images, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python where the containers' published ports are."""
    inside = images.engine.namespace_pid
    way = [] if inside is None else ["nsenter", f"--target={inside}", "--net", "--"]
    environment = {
        **images.engine.environment, "LAB_PROVIDER": "docker", "PYTHONPATH": str(ROOT),
        "LAB_CONSUL_IMAGE": images.consul, "LAB_K3S_IMAGE": images.kubernetes,
    }  # fmt: skip
    return subprocess.run(
        [*way, sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds,
        check=False,
    )  # fmt: skip


def test_the_same_lab_from_containers(images: Images) -> None:
    """Killed, restarted with and without data, paused; and no container is left."""
    done = python(images, "-c", STORY)
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr
    assert "lab: servers from docker" in done.stderr
    assert images.engine.docker("ps", "-aq", "--filter", "label=bridge-lab") == ""


def test_the_contracts_of_the_clients_hold_over_containers(images: Images) -> None:
    """Those that the fakes are held to as well, and the lab's own."""
    contracts = [
        f"tests/contract/{name}.py" for name in ("test_consul_contract", "test_kube_contract", "test_kube_lease_events")
    ]
    done = python(images, "-m", "pytest", "-q", "-p", "no:cacheprovider", *contracts, seconds=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert images.engine.docker("ps", "-aq", "--filter", "label=bridge-lab") == ""


def test_the_demonstration_runs_on_images_that_the_engine_has(images: Images) -> None:
    """Consul's checks come out of its container to the gateways here; nothing is left."""
    done = python(images, "-m", "tests.support.demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a real Consul and a real Kubernetes control plane, from Docker's images" in " ".join(done.stdout.split())
    assert headings(done.stdout) == STEPS
    assert images.engine.docker("ps", "-aq", "--filter", "label=bridge-lab") == ""


def test_a_killed_lab_leaves_no_container(images: Images) -> None:
    """The reaper removes them."""
    done = python(images, "-c", KILLED)
    assert done.returncode == -9, done.stderr
    wait_until(lambda: images.engine.docker("ps", "-aq", "--filter", "label=bridge-lab") == "", 60, "no container")


def test_no_images_no_docker(images: Images) -> None:
    """A forced way that is closed says which image is missing, at once."""
    environment = {
        **images.engine.environment, "LAB_PROVIDER": "docker", "LAB_CONSUL_IMAGE": "bridge-lab.invalid/none:1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    code = "from tests.support.lab import Lab; Lab()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "LAB_PROVIDER=docker cannot be used: bridge-lab.invalid/none:1 is not there" in done.stderr
