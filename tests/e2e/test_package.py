"""What is installed works: the built wheel, in an empty environment, on every supported Python that is here."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import files
from pathlib import Path

import pytest

import bridge
from tests.support.fakes.consul import FakeConsul
from tests.support.fakes.kube import FakeKube

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def supported() -> list[str]:
    """The versions of the classifiers."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())


def interpreter(version: str) -> str | None:
    """A Python of this version on this machine: our own, on PATH, or where pyenv keeps them."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    homes = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (shutil.which(f"python{version}"), *map(str, sorted(homes.glob(f"{version}.*/bin/python")))):
        if candidate and run([candidate, "--version"], check=False).returncode == 0:
            return candidate
    return None


def run(command: Sequence[str], check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with nothing of ours in its environment."""
    env = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "TMPDIR", "PIP_INDEX_URL") if k in os.environ}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if isinstance(more := options.get("env"), dict):
        env |= more
    done = subprocess.run(
        list(command),
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=str(options.get("cwd", "/")),
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)])
    return folder


def test_the_wheel_has_all_of_the_bridge_and_nothing_else(built: Path) -> None:
    """Every module and every file that is served; no tests."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        str(p.relative_to(ROOT)) for p in (ROOT / "bridge").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert names == ours
    assert "bridge/py.typed" in names


def test_the_sdist_has_what_is_needed_to_build_it(built: Path) -> None:
    """The wheel beside it was built from it."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "bridge/cli/__init__.py", "requirements/runtime.txt"} <= names


@pytest.mark.parametrize("version", supported())
def test_it_works_in_an_empty_environment(built: Path, version: str, tmp_path: Path) -> None:
    """Installed from the lock file and the wheel: every command starts, completion is there, and a pass is made."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    (wheel,) = built.glob("*.whl")
    run([python, "-m", "venv", str(tmp_path / "venv")])
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    run([*pip, "--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")])
    run([*pip, "--no-deps", str(wheel)])
    run([*pip[:3], "check"])
    command = str(tmp_path / "venv/bin/bridge")

    said = run([command, "--version"]).stdout
    assert said.startswith(f"bridge {bridge.__version__} (Python {version}.")
    assert "python-consul2 0.1.5, kubernetes " in said
    for name in ("sync", "run", "status", "explain", "check", "purge"):
        assert "--consul-address" in run([command, name, "--help"]).stdout
    assert (
        "sync"
        in run(
            [command], env={"_BRIDGE_COMPLETE": "complete_bash", "COMP_WORDS": "bridge sy", "COMP_CWORD": "1"}
        ).stdout
    )
    with FakeConsul() as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        sync = [command, "sync", "--consul-address", consul.address, "--kubeconfig", kube.kubeconfig(tmp_path)]
        run([*sync, "--service", "*", "--namespace", "default"])
        found = kube.get("endpoints", "default", "web")
    assert found is not None
    assert found["subsets"][0]["addresses"] == [{"ip": "10.0.0.1"}]


def test_a_plain_install_brings_all_that_it_needs(built: Path, tmp_path: Path) -> None:
    """`pip install WHEEL` into an empty environment: what pyproject.toml forgets to name would be missing."""
    (wheel,) = built.glob("*.whl")
    # The lock file only chooses versions here. Its hashes would make pip ask for one of the wheel, too.
    pinned = re.findall(
        r"^([A-Za-z0-9][^ \\\n]*==[^\\\n]*?) *\\?$", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE
    )
    (tmp_path / "versions.txt").write_text("\n".join(pinned))
    assert len(pinned) >= 12
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")])
    python, command = str(tmp_path / "venv/bin/python"), str(tmp_path / "venv/bin/bridge")
    run([
        *(python, "-m", "pip", "install", "--quiet", "--no-compile"),  # of some thousand files it needs a few hundred
        *("--constraint", str(tmp_path / "versions.txt"), str(wheel)),
    ])  # fmt: skip
    run([python, "-m", "pip", "check"])
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in sorted((ROOT / "bridge").rglob("*.py"))
    ]
    run([python, "-c", "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]", *modules])
    with FakeConsul() as consul, FakeKube() as kube:
        consul.register("web", "vm-1", "10.0.0.1", 80)
        sync = [command, "sync", "--consul-address", consul.address, "--kubeconfig", kube.kubeconfig(tmp_path)]
        run([*sync, "--service", "*"])
        assert kube.get("endpoints", "default", "web") is not None


def imported() -> Iterator[str]:
    """The top name of every import in the bridge, those inside functions included."""
    for file in (ROOT / "bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    """Not one that is there only because another one brings it today."""
    declared = {
        re.split(r"[<>=~!\[ ]", line)[0].lower()
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    theirs = {file.parts[0].removesuffix(".py") for name in declared for file in files(name) or ()}
    libraries = set(imported()) - sys.stdlib_module_names - {"bridge"}
    assert {"consul", "kubernetes", "typer"} <= libraries
    assert libraries - theirs == set()
