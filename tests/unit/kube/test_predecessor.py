"""What proves that a process before us in our own container has ended, and what proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.kube.predecessor import has_ended, own_process

POD = "0b1c2d3e-1111-2222-3333-444455556666"
KUBELET = "/var/lib/kubelet/pods"


def proc(
    folder: Path, pod: str = POD, container: str = "bridge", namespace: int = 7, pid: int = 1, started: int = 500
) -> Path:
    """What a process sees of itself."""
    (folder / "self/ns").mkdir(parents=True)
    (folder / "self/mountinfo").write_text(
        "600 500 0:52 / / rw - overlay overlay rw\n"
        f"601 600 8:1 {KUBELET}/{pod}/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw\n"
        f"602 600 8:1 {KUBELET}/{pod}/containers/{container}/1a2b3c4d /dev/termination-log rw - ext4 /dev/sda1 rw\n"
    )
    (folder / "self/ns/pid").symlink_to(f"pid:[{namespace}]")
    run(folder, pid, started)
    (folder / "self/stat").write_text((folder / str(pid) / "stat").read_text())
    return folder


def run(folder: Path, pid: int, started: int) -> None:
    """A process of the namespace, whose name has a blank and a bracket in it."""
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "stat").write_text(f"{pid} (a ) b) S {' '.join('0' for _ in range(18))} {started} 0 0\n")


@pytest.mark.parametrize(
    ("before", "ended"),
    [
        ({"namespace": 6}, True),
        ({"namespace": 7, "started": 400}, True),  # the kernel gives the number of a namespace again
        ({"namespace": 7, "pid": 33}, True),  # an exec that is over
        ({"namespace": 7, "pid": 9, "started": 450}, False),  # an exec that runs, as we may be one
        ({"namespace": 6, "container": "second"}, False),
        ({"namespace": 6, "pod": POD.replace("0b", "ff")}, False),
    ],
)
def test_what_ran_before_us_in_our_container_has_ended(
    tmp_path: Path, before: dict[str, int | str], ended: bool
) -> None:
    """A container is started when the one before it of that name has ended; of others nothing is known."""
    ours = proc(tmp_path / "ours")
    run(ours, 9, 450)
    theirs = own_process(proc(tmp_path / "theirs", **before))  # type: ignore[arg-type]  # by parameter
    assert has_ended(theirs, ours) is ended


def test_nothing_is_known_without_kubelet_and_of_odd_texts(tmp_path: Path) -> None:
    """On a machine, in another container engine, or where kubelet's mounts cannot be seen."""
    ours = proc(tmp_path / "ours")
    assert not has_ended(own_process(ours), ours)
    assert [has_ended(text, ours) for text in ("", "a/b", f"{POD}/bridge")] == [False] * 3
    (ours / "self/mountinfo").write_text("600 500 0:52 / / rw - overlay overlay rw\n")
    assert (own_process(ours), own_process(tmp_path / "none")) == ("", "")
    assert not has_ended("", ours)
