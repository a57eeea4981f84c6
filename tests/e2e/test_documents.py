"""Every command of the documents is executed on real servers, and says what the document shows.

A ```sh block is run by bash, all blocks of a page in one shell, one after the other; the ```text block behind it shows
lines of its output, in their order, `...` for anything. Further words after `sh` say how: `in the background` (ended
with the page), `not run here: REASON`. A ```yaml block with rules must pass `bridge check --offline`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.lab import Lab
from tests.lab.build import binaries
from tests.lab.servers import die_with_parent
from tests.program import bridge, environment

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"docs/tutorial.md": 6, "docs/how-to.md": 6, "docs/security.md": 1, "docs/operations.md": 8}
"""With the least number of blocks that are run."""

UNDER_ACLS = {"docs/operations.md"}
"""Pages whose Consul denies by default; the shell has its management token."""

END = "--- end of block"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what stands behind it on the fence, its text, and its line in the page."""

    language: str
    manner: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2] or "", m[3], text[: m.start()].count("\n") + 1) for m in found]


@dataclass
class Shell:
    """One bash for a whole page."""

    process: subprocess.Popen[str]
    background: list[subprocess.Popen[bytes]]
    env: dict[str, str]
    folder: Path

    def run(self, block: Block) -> str:
        """Run a block; its output, standard error included. Fails when its last command does."""
        if block.manner == "in the background":
            command = ["bash", "-c", f"exec {block.text}"]
            with (self.folder / "background.log").open("wb") as log:
                running = subprocess.Popen(
                    command, env=self.env, cwd=self.folder, preexec_fn=die_with_parent, stdout=log, stderr=log
                )
            self.background.append(running)
            return ""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f'{block.text}\necho "{END} $?"\n')
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith(END):
                assert line.split()[-1] == "0", f"line {block.line}: {''.join(lines)}"
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended in the block at line {block.line}: {''.join(lines)}")


@pytest.fixture
def shell(fresh_lab: Lab, tmp_path: Path) -> Iterator[Shell]:
    """A bash with the tools and servers of the lab, in an empty folder that has a link to the manifests."""
    tools = binaries(["consul", "kubectl", "kustomize", "helm"])
    folders = dict.fromkeys([*(str(p.parent) for p in tools.values()), str(Path(sys.executable).parent)])
    env = environment(fresh_lab.consul.address, fresh_lab.kubeconfig)
    env |= {"PATH": ":".join([*folders, env["PATH"]]), "HOME": str(tmp_path)}
    env |= {"CONSUL_HTTP_TOKEN": fresh_lab.consul.token} if fresh_lab.consul.token else {}
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    process = subprocess.Popen(
        ["bash", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        cwd=tmp_path, preexec_fn=die_with_parent,
    )  # fmt: skip
    made = Shell(process, [], env, tmp_path)
    yield made
    for running in made.background:
        running.send_signal(signal.SIGINT)
        running.wait(20)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "fresh_lab"),
    [(page, {"acl": page in UNDER_ACLS}) for page in PAGES],
    ids=list(PAGES),
    indirect=["fresh_lab"],
)
def test_the_commands_of_a_page_do_what_it_shows(shell: Shell, page: str) -> None:
    """In the order of the page."""
    output, ran = "", 0
    for block in blocks(page):
        if block.language == "sh" and block.manner.startswith("not run here: "):
            continue
        if block.language == "sh":
            assert block.manner in ("", "in the background"), block
            output = shell.run(block)
            ran += 1
        elif block.language == "text":
            assert_shows(output, block, page)
    assert ran >= PAGES[page]


def assert_shows(output: str, block: Block, page: str) -> None:
    """Every line of the block is in the output, in this order."""
    position = 0
    for line in filter(None, map(str.strip, block.text.splitlines())):
        pattern = re.compile(r".*".join(map(re.escape, line.split("..."))))
        found = pattern.search(output, position)
        assert found is not None, f"{page}, line {block.line}: {line!r} is not in\n{output}"
        position = found.end()


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_the_rules_of_a_page_are_valid(page: str, tmp_path: Path) -> None:
    """Every YAML block that is a settings file passes the check that needs no server; any other is YAML."""
    for block in blocks(page):
        if block.language != "yaml":
            continue
        found = list(yaml.safe_load_all(block.text))
        if any("kind" in (document or {}) for document in found):
            continue
        file = tmp_path / "bridge.yaml"
        file.write_text(block.text)
        env = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
        done = bridge("check", "--offline", "--config", str(file), env=env)
        assert done.status == 0, f"{page}, line {block.line}: {done.stdout}{done.stderr}"
