"""What a release says of itself is the same everywhere, and made from the lock files."""

from __future__ import annotations

import re
import tomllib

import bridge
from tests.support.docs import notice
from tests.support.docs.notice import ROOT


def test_notice_is_what_the_lock_file_says() -> None:
    """`python -m tests.support.docs.notice` makes it again; `make lock` does so by itself."""
    assert notice.NOTICE.read_text() == notice.text()


def test_the_image_installs_what_is_tested_and_nothing_else() -> None:
    """Each pin of the image is one of the runtime's; what is left out is the asyncio copy's alone."""
    runtime = set(
        re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    )
    image = set(re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", notice.PINS.read_text(), re.MULTILINE))
    assert image <= runtime
    left_out = re.search(r"^NOT_IN_IMAGE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert left_out is not None
    assert {name for name, _ in runtime - image} == set(left_out[1].split())


def test_the_version_is_set_in_one_place_and_repeated_exactly() -> None:
    """bridge/__init__.py has it; what cannot read it there says the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    said = {
        "Dockerfile": r"^ARG VERSION=(\S+)$",
        "manifests/chart/Chart.yaml": r'^(?:version|appVersion): "?([0-9.]+)"?$',
        "manifests/overlays/demo/kustomization.yaml": r"^ +newTag: (\S+)$",
        "manifests/overlays/example/kustomization.yaml": r"^ +newTag: (\S+)$",
    }
    for path, pattern in said.items():
        assert set(re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE)) == {bridge.__version__}, path
