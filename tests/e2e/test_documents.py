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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.lab import Lab, manifests
from tests.support.lab.build import binaries
from tests.support.lab.servers import die_with_parent
from tests.support.program import bridge, environment

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "manifests/README.md",
    "manifests/chart/README.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
)
"""Every page with commands for people."""

WALK = (
    "make demo-docker",
    "docker compose exec kubernetes kubectl get service,endpoints radosgw",
    "docker compose exec kubernetes kubectl run ask --rm --attach --quiet --restart=Never --image=busybox:1.37 -- \\",
    "docker stop consul-endpoints-bridge-radosgw-3",
    "docker compose exec kubernetes kubectl get endpoints radosgw",
    "docker kill consul-endpoints-bridge-radosgw-5",
    "docker compose run --rm bridge explain radosgw",
    "docker start consul-endpoints-bridge-radosgw-3 consul-endpoints-bridge-radosgw-5",
    "docker compose run --rm bridge sync --dry-run",
    "docker compose down --volumes",
)
"""README's walk through the demonstration with Docker."""

NOT_RUN: Mapping[tuple[str, str], str] = {
    **{("README.md", command): "tests/e2e/test_compose.py types it" for command in WALK},
    ("README.md", "make demo"): "tests/loop/test_embedded_demo.py and tests/e2e/test_demo.py run it whole",
    ("README.md", "make demo REAL=1"): "tests/e2e/test_demo.py runs it whole",
    ("README.md", "python3 -m venv ~/bridge && ~/bridge/bin/pip install . && export PATH=~/bridge/bin:$PATH"):
        "tests/e2e/test_package.py installs the wheel",
    ("README.md", 'eval "$(_BRIDGE_COMPLETE=source_bash bridge)"'): "tests/e2e/test_completion.py presses Tab",
    ("README.md", 'eval "$(_BRIDGE_COMPLETE=source_zsh bridge)"'): "the same",
    ("README.md", "bridge sync --consul-address http://consul.example:8500 --service 'radosgw*' --namespace storage "
     "--dry-run"): "a Consul of that name is nowhere; the tutorial runs the same",
    ("README.md", "kubectl apply --server-side -k manifests/overlays/demo"): "the block under Install does",
    ("docs/how-to.md", "for n in $(seq 1 12); do"): "no systemd; tests/e2e/test_traffic.py does the same under load",
    ("docs/operations.md", "kubectl --namespace storage rollout status deployment/consul-endpoints-bridge "
     "--timeout=2m"): "the walk has no nodes; tests/pods waits for rollouts",
    **{("docs/reliability.md", command): "it takes minutes; it is a step of the suite" for command in (
        "python -m pytest tests/pods", "make pods", 'make pods ONLY="rotated or lost"',
    )},
    ("docs/page.md", "kubectl port-forward deployment/consul-endpoints-bridge 9480"): "it needs a pod",
    **{("docs/release.md", command): "it needs a registry and a signing key" for command in (
        'git tag --sign v0.1.0 --message "0.1.0" && git push origin v0.1.0',
        "make image SOURCE=https://example.com/consul-endpoints-bridge",
        "docker tag consul-endpoints-bridge:0.1.0 registry.example.com/consul-endpoints-bridge:0.1.0",
        "docker push registry.example.com/consul-endpoints-bridge:0.1.0", "make sbom",
        "cosign sign --key cosign.key registry.example.com/consul-endpoints-bridge@sha256:DIGEST",
        "cosign attest --key cosign.key --type cyclonedx --predicate dist/sbom.cdx.json "
        "registry.example.com/consul-endpoints-bridge@sha256:DIGEST",
        "cosign verify --key cosign.pub registry.example.com/consul-endpoints-bridge@sha256:DIGEST",
        "cosign verify-attestation --key cosign.pub --type cyclonedx "
        "registry.example.com/consul-endpoints-bridge@sha256:DIGEST",
    )},
    ("docs/compatibility.md", 'make compat KUBERNETES="1.27.16" CONSUL="1.15.6"'): "builds servers, minutes each",
    ("docs/compatibility.md", 'make compat PYTHONS="python3.12 python3.14"'): "it needs other interpreters",
    ("docs/reliability.md", "make chaos"): "five minutes; the suite has a step chaos",
    ("docs/reliability.md", "make chaos SEED=7 MINUTES=60"): "an hour",
    ("docs/reliability.md", 'make chaos FAULT="kube-kill etcd-no-space"'): "minutes",
    ("docs/reliability.md", "python -m tests.support.chaos --soak"): "30 minutes",
    **{("docs/scaling.md", command): "it needs two checkouts, or the peers built" for command in (
        "make setup && make -C ../before setup",
        'make lab-up && eval "$(make --silent lab-env)"',
        "git clone https://github.com/hashicorp/consul-k8s && git -C consul-k8s checkout a507b1d",
        "git clone https://github.com/alexieff-io/consul-sync && git -C consul-sync checkout 1effc1d",
        "kubectl get services,endpointslices --watch --output-watch-events &",
    )},
    ("docs/scaling.md", "make bench PARTS=report"): "a part of the benchmark",
    ("docs/security.md", "pip install pip-audit"): "it needs the internet",
    ("docs/security.md", "pip-audit --require-hashes --disable-pip -r requirements/runtime.txt"): "the same",
    ("docs/tutorial.md", "make lab-up"): "the page's servers are there already",
    ("docs/tutorial.md", 'eval "$(make --silent lab-env)"'): "the same",
    ("docs/tutorial.md", "make lab-down"): "the page's servers are not its own",
}  # fmt: skip
"""Commands that no test runs from their page, and why. One that is not there (any more) fails a test."""

PROGRAMS = frozenset({
    "bridge", "make", "python", "python3", "pip", "pip-audit", "kubectl", "kustomize", "helm", "consul", "curl",
    "docker", "nginx", "openssl", "cosign", "eval", "for", "git", "ssh", "cp", "cat", "echo", "sudo",
})  # fmt: skip
"""What a line must begin with to be a command."""

LANGUAGES = frozenset(("", "sh", "text", "yaml", "nginx"))
"""Those of fenced blocks; pictures have none."""

UNDER_ACLS = {"docs/operations.md"}
"""Pages whose Consul denies by default; the shell has its management token."""

END = "--- end of block"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what is behind it on the fence, its text, and its line in the page."""

    language: str
    manner: str
    text: str
    line: int


FENCED = re.compile(r"^```(\w*)(?: ([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(m[1], m[2] or "", m[3], text[: m.start()].count("\n") + 1) for m in FENCED.finditer(text)]


def is_run(block: Block) -> bool:
    """Whether a block is executed."""
    return block.language == "sh" and not block.manner.startswith("not run here: ")


def commands(text: str) -> Iterator[str]:
    """Lines that begin with a program, without prompts and comments; those inside of a loop or a string apart."""
    for line in text.splitlines():
        command = re.sub(r"\s+#\s.*$", "", line.removeprefix("$ ")).strip()
        if line[:1].strip() and command.split(" ")[0] in PROGRAMS:
            yield command


def indented(text: str) -> Iterator[str]:
    """Blocks that Markdown takes for code because they are indented, without the indentation."""
    for found in re.finditer(r"(?:^(?: {4}|\t)[^\n]*\n)+", FENCED.sub("", text), re.MULTILINE):
        yield re.sub(r"^(?: +|\t)", "", found[0], flags=re.MULTILINE)


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
    """A bash with the tools and servers of the lab, beside a copy of the manifests and a link to the tests."""
    tools = binaries(["consul", "kubectl", "kustomize", "helm"])
    folders = dict.fromkeys([*(str(p.parent) for p in tools.values()), str(Path(sys.executable).parent)])
    env = environment(fresh_lab.consul.address, fresh_lab.kubeconfig)
    env |= {"PATH": ":".join([*folders, env["PATH"]]), "HOME": str(tmp_path)}
    env |= {"CONSUL_HTTP_TOKEN": fresh_lab.consul.token} if fresh_lab.consul.token else {}
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    process = subprocess.Popen(
        ["bash", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        cwd=tmp_path, preexec_fn=die_with_parent,
    )  # fmt: skip
    made = Shell(process, [], env, tmp_path)
    with fresh_lab.raw_kube() as kube, manifests.gateway_kinds(kube):
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
    [(page, {"acl": page in UNDER_ACLS}) for page in PAGES if any(map(is_run, blocks(page)))],
    ids=[page for page in PAGES if any(map(is_run, blocks(page)))],
    indirect=["fresh_lab"],
)
def test_the_commands_of_a_page_do_what_it_shows(shell: Shell, page: str) -> None:
    """In the order of the page."""
    output = ""
    for block in blocks(page):
        if is_run(block):
            assert block.manner in ("", "in the background"), block
            output = shell.run(block)
        elif block.language == "text":
            assert_shows(output, block, page)


def assert_shows(output: str, block: Block, page: str) -> None:
    """Every line of the block is in the output, in this order."""
    position = 0
    for line in filter(None, map(str.strip, block.text.splitlines())):
        pattern = re.compile(r".*".join(map(re.escape, line.split("..."))))
        found = pattern.search(output, position)
        assert found is not None, f"{page}, line {block.line}: {line!r} is not in\n{output}"
        position = found.end()


@pytest.mark.parametrize("page", PAGES)
def test_no_command_of_a_page_escapes(page: str) -> None:
    """Each is in a block that is run, or in the list of those that are not: in a fence that says so, or indented."""
    text = (ROOT / page).read_text(encoding="utf-8")
    not_run = [block.text for block in blocks(page) if block.language == "sh" and not is_run(block)]
    hidden = [*indented(text), *(block.text for block in blocks(page) if block.language != "sh")]
    assert [text for text in not_run if not list(commands(text))] == []
    found = {(page, command) for block in (*not_run, *hidden) for command in commands(block)}
    assert found == {key for key in NOT_RUN if key[0] == page}


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_of_a_page_is_understood(page: str) -> None:
    """None is indented or of another language, so that no block is overlooked."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert text.count("```") == 2 * len(blocks(page))


def test_what_the_tests_of_pages_look_for_is_found() -> None:
    """They would pass on a page in which they see nothing."""
    page = "Try\n\n    make x   # now\n    $ kubectl get y\n\nor\n\n```text\nhelm z\n```\n- list\n    text\n"
    assert [list(commands(block)) for block in indented(page)] == [["make x", "kubectl get y"], []]
    assert [list(commands(m[3])) for m in FENCED.finditer(page)] == [["helm z"]]


@pytest.mark.parametrize("page", PAGES)
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
