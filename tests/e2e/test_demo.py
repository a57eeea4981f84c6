"""`make demo` as a newcomer runs it: in a terminal of 80 and of 200 columns, with colour and without, to its end.

And the VMs of the demonstration with Docker, whose other parts test_compose.py runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Eventually
from tests.support.demo.__main__ import _can_unshare
from tests.support.demo.terminal import (
    BASIC,
    ESCAPE,
    SECONDS,
    STEPS,
    assert_fits,
    assert_nothing_is_left,
    checkout,
    headings,
    terminal,
)
from tests.support.lab import TOOLS, Lab, LabError, binaries, free_port
from tests.support.raw import RawConsul, RawKube

pytestmark = [pytest.mark.lab, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _servers() -> None:
    """Built before, so that no test waits for it."""
    try:
        binaries([name for name, tool in TOOLS.items() if tool.core])
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no servers: {error}")


def test_it_tells_its_story_in_eighty_columns_and_ends_by_itself(tmp_path: Path) -> None:
    """In basic colours; the bridge's own output is shown as on this terminal; nothing is left, no engine was asked."""
    before = checkout()
    with terminal(80, tmp_path) as shown:
        text = shown.read()
        assert shown.process.wait(60) == 0, text
    assert_fits(text, 80)
    assert {(m[1], m[2]) for m in ESCAPE.finditer(text)} <= {(code, "m") for code in BASIC}
    assert "\x1b[32m3 objects created\x1b[0m" in text  # by `bridge`, which colours on terminals alone
    plain = ESCAPE.sub("", text)
    assert "11, 1 not ready: 10.77.0.13\n" in plain
    assert "13 of 13: radosgw-01 ... radosgw-13\n" in plain
    assert ("(asked where each gateway listens here" in plain) is not _can_unshare()
    assert headings(text) == STEPS
    assert plain.startswith("Servers: a real Consul and a real Kubernetes control plane, built from source.\n")
    assert "stand-in" not in plain
    assert_nothing_is_left(tmp_path)
    assert checkout() == before
    assert not (tmp_path / "docker-was-called").exists()


def test_ctrl_c_in_the_middle_leaves_nothing_either(tmp_path: Path) -> None:
    """The status is that of an interrupted command."""
    with terminal(80, tmp_path) as shown:
        shown.read(until="Do it")
        os.write(shown.screen, b"\x03")
        text = shown.read()
        assert shown.process.wait(60) == 130, text
    assert ESCAPE.sub("", text).endswith("\ndemo: interrupted\n")
    assert "Traceback" not in text
    assert_nothing_is_left(tmp_path)


def test_it_runs_where_no_namespace_can_be_made_and_into_a_pipe(tmp_path: Path) -> None:
    """The gateways share the loopback then; without a terminal nothing is coloured."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho not permitted >&2; exit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.support.demo"],
        cwd=ROOT, env={
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "xterm-256color", "LAB_PROVIDER": "build",
        },
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n(no network namespaces here: the gateways listen on loopback," in done.stdout
    assert "    12 HTTP servers, on loopback, each checked by Consul every second\n" in done.stdout
    assert "11, 1 not ready: 10.77.0.13\n" in done.stdout
    assert "\x1b" not in done.stdout


def test_before_the_first_build_it_says_how_long_that_takes(tmp_path: Path) -> None:
    """And when the build fails, the compiler's words are the end."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script = 'if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi; echo no such module; exit 1'
    (programs / "go").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "go").chmod(0o755)
    cache = tmp_path / "cache"
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache), "LAB_PROVIDER": ""}
    with terminal(80, tmp_path, "--real", **environment) as shown:
        text = shown.read()
        assert shown.process.wait(60) == 1
    assert_fits(text, 80)
    assert " ".join(text.split()) == (
        "Servers: a real Consul and a real Kubernetes control plane, built from source. "
        "The first time, the servers are built from source (etcd, kube-apiserver, kube-controller-manager, consul). "
        "On two cores that takes 10 to 15 minutes for all four, later it is a matter of seconds. "
        "lab: building etcd (1 of 4) from etcd's sources demo: etcd cannot be built: no such module"
    )


def test_it_stays_up_for_the_page_until_ctrl_c(tmp_path: Path) -> None:
    """In 200 columns, without colour; a browser of this machine reaches the page that is named; Ctrl-C is the end."""
    with terminal(200, tmp_path, "--stay", NO_COLOR="1") as shown:
        found = re.search(page := r"the page: (\S+)\n", shown.read(until=page))
        assert found is not None
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            assert (answer.status, "radosgw" in answer.read().decode()) == (200, True)
        os.write(shown.screen, b"\x03")
        text = shown.read()
        assert shown.process.wait(60) == 0, text
    assert_fits(text, 200)
    assert ("\x1b" in text, "Traceback" in text) == (False, False)
    assert text.rstrip().splitlines()[-2].endswith("nothing is left")
    assert_nothing_is_left(tmp_path)


def test_it_runs_on_given_servers_and_leaves_nothing_on_them(
    lab: Lab, consul: RawConsul, kube: RawKube, tmp_path: Path, eventually: Eventually
) -> None:
    """LAB_CONSUL_ADDR and LAB_KUBECONFIG come first; a service of its name that is there already is not mixed in."""
    if lab.consul.borrowed:
        pytest.skip("the lab's own servers are borrowed already")
    addresses = {"LAB_CONSUL_ADDR": lab.consul.address, "LAB_KUBECONFIG": str(lab.kubeconfig), "LAB_PROVIDER": ""}
    (tmp_path / "first").mkdir()
    with terminal(80, tmp_path / "first", **addresses) as shown:
        text = shown.read()
        assert shown.process.wait(60) == 0, text
    assert text.startswith("Servers: yours, of LAB_CONSUL_ADDR and LAB_KUBECONFIG.\n")
    assert headings(text)[:-1] == STEPS[:-1]
    assert "radosgw" not in consul.services()
    eventually(lambda: kube.get("/api/v1/namespaces/storage"), None)
    consul.register("radosgw", "somebody-s", "10.1.2.3", 80)
    (tmp_path / "second").mkdir()
    try:
        with terminal(80, tmp_path / "second", **addresses) as shown:
            text = shown.read()
            assert shown.process.wait(60) == 1, text
        assert "Consul has a service radosgw already" in text
    finally:
        consul.drop_node("somebody-s")


@contextlib.contextmanager
def vm(lab: Lab, address: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A VM of the demonstration with Docker, killed at the end."""
    environment = {
        "CONSUL_HTTP_ADDR": lab.consul.address, "SERVICE": "vm-of-the-demo", "ADDRESS": address, "PORT": str(port),
    }  # fmt: skip
    running = subprocess.Popen([sys.executable, str(ROOT / "demo/vm.py")], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait(10)


def test_a_vm_that_comes_back_elsewhere_says_where(lab: Lab, consul: RawConsul, eventually: Eventually) -> None:
    """Killed, it could not deregister; its new address takes the place of the old one. Stopped, it is gone."""

    def registered() -> list[tuple[str, set[str]]]:
        entries = consul.health("vm-of-the-demo")[1]
        return [(e["Service"]["Address"], {c["Status"] for c in e["Checks"]}) for e in entries]

    def asked() -> bool:
        checks = consul.json("GET", "/v1/agent/checks").values()
        return any(c["ServiceName"] == "vm-of-the-demo" and c["Output"] for c in checks)

    port = free_port()
    with vm(lab, "127.0.0.2", port):
        eventually(registered, [("127.0.0.2", {"passing"})])
        # Consul's first look at it. Of first looks that fail, Consul 1.22 forgot to tell its catalog one in four.
        eventually(asked, True)
    eventually(registered, [("127.0.0.2", {"passing", "critical"})])
    with vm(lab, "127.0.0.3", port) as running:
        eventually(registered, [("127.0.0.3", {"passing"})])
        running.terminate()
        eventually(registered, [])
