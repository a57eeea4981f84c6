"""The cluster with pods leaves nothing behind, whatever ends it, and says why where it cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pods.conftest import no_cluster
from tests.support.lab.build import ROOT
from tests.support.lab.pods import cgroups, node, trouble
from tests.support.lab.servers import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

OWNER = """
import time
from tests.support.lab.pods import Cluster
with Cluster(nodes=1, vms=1) as cluster:
    print(cluster.lab.folder, flush=True)
    time.sleep(600)
"""


def left_of(folder: Path) -> list[str]:
    """What is left of a lab: its folder, cgroups, mounts, and processes whose command line names it."""
    found = [str(folder)] if folder.exists() else []
    for parent in cgroups.ours().values():
        found += map(str, parent.glob(f"{folder.name}*"))
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if folder.name in line]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder.name in line:
            found.append(line[:200])
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_behind(how: signal.Signals) -> None:
    """The owner is killed, or ended without having caught it: processes, cgroups and files go."""
    no_cluster()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        folder = Path(owner.stdout.readline().strip())
    assert len(left_of(folder)) > 10
    owner.send_signal(how)
    owner.wait(30)
    wait_until(lambda: not left_of(folder), 30, f"nothing being left of {folder}", 0.2)


def test_up_starts_it_for_a_user_and_down_ends_it(tmp_path: Path) -> None:
    """`up --pods`, then kubectl as the printed variables have it, then `down`."""
    no_cluster()
    env = {**os.environ, "LAB_HOME": str(tmp_path / "home")}

    def lab(*arguments: str) -> str:
        command = [sys.executable, "-m", "tests.support.lab", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = lab("up", "--pods")
    try:
        folder = Path(script.partition("KUBECONFIG=")[2].split("\n")[0].strip("'")).parent
        nodes = subprocess.run(
            ["bash", "-c", f"{script}\nkubectl get nodes --no-headers; consul catalog services"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert [line.split()[:2] for line in nodes.splitlines()[:2]] == [["node-1", "Ready"], ["node-2", "Ready"]]
        assert "radosgw" in nodes
        assert "Consul is http://10.77.0.1:" in lab("status")
    finally:
        lab("down")
    wait_until(lambda: not left_of(folder), 30, f"nothing being left of {folder}", 0.2)


def test_another_user_than_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence that says what to do, before anything is made."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert trouble() == "nodes are made by root alone (mounts, cgroups, containers): run it as root"


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs them."""
    if os.geteuid() != 0:
        pytest.skip("root is asked for first")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(node, "PLUGINS", ())
    assert trouble() == (
        "not installed: apt-get install --no-install-recommends containerd containernetworking-plugins hostname mount "
        "runc (CNI plugins: in /usr/lib/cni or /opt/cni/bin)"
    )


def test_what_is_missing_of_cgroups_is_named(tmp_path: Path) -> None:
    """cgroup v2 alone, and a group that is not ours to divide."""
    v2 = cgroups.trouble(cgroups.parents("0::/user.slice\n"))
    assert v2 is not None
    assert v2.startswith("cgroup v1 hierarchies are needed")
    text = "".join(f"{n}:{name}:/not/there\n" for n, name in enumerate(sorted(cgroups.NEEDED), 1))
    closed = cgroups.trouble(cgroups.parents(text, tmp_path))
    assert closed == f"no cgroup can be made here: {tmp_path}/cpu/not/there: No such file or directory"


def test_what_a_killed_lab_left_is_removed_by_the_next() -> None:
    """Where even the shell that waits was killed: the next cluster finds the groups of a folder that is gone."""
    no_cluster()
    left = [parent / f"bridge-lab-gone-{os.getpid()}-node-1" for parent in cgroups.ours().values()]
    for group in left:
        (group / "kubepods").mkdir(parents=True)
    cgroups.reap()
    assert [group for group in left if group.exists()] == []
