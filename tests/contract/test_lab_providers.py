"""Which servers the lab takes, and how a binary gets into its cache; no server is started here."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.lab import Lab, LabError, build, providers
from tests.support.lab.__main__ import main
from tests.support.lab.build import TOOLS
from tests.support.lab.providers import (
    AT_HAND,
    QUESTIONS,
    Choice,
    Provider,
    Question,
    choose,
    from_cache,
    from_docker,
    from_environment,
    from_images,
    from_path,
    images,
    programs_on_path,
)


def answer(trouble: str | None) -> Question:
    """A way that is open, or closed for a reason."""

    def question(_environ: Mapping[str, str]) -> str | None:
        return trouble

    return question


def programs(folder: Path, **versions: str) -> dict[str, str]:
    """A PATH with programs that say these versions."""
    for name, version in versions.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    return {"PATH": str(folder)}


CORE = {"etcd": "etcd Version: 3.7.4", "kube_apiserver": "Kubernetes v1.37.0", "kube_controller_manager": "v1.37.9"}


def test_the_first_open_way_is_taken_and_the_others_are_explained() -> None:
    """The reasons of what came before, and only those, are kept."""
    ways = {
        Provider.ENV: answer("not set"),
        Provider.PATH: answer("no etcd on PATH"),
        Provider.DOCKER: answer(None),
        Provider.BUILD: answer("never asked"),
    }
    assert choose({}, ways) == Choice(Provider.DOCKER, {Provider.ENV: "not set", Provider.PATH: "no etcd on PATH"})


def test_the_choice_reads_as_a_sentence() -> None:
    """What was chosen, and why the rest was not."""
    assert str(Choice(Provider.BUILD, {Provider.PATH: "no etcd on PATH"})) == (
        "servers from build (path: no etcd on PATH)"
    )


def test_a_forced_way_is_the_only_one_asked() -> None:
    """LAB_PROVIDER=build does not look for an engine."""
    assert choose({"LAB_PROVIDER": "build"}, {Provider.BUILD: answer(None)}).provider is Provider.BUILD


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("podman", "LAB_PROVIDER=podman is none of env, path, docker, build"),
        ("path", "LAB_PROVIDER=path cannot be used: no etcd on PATH"),
    ],
)
def test_a_forced_way_that_is_closed_is_an_error(forced: str, message: str) -> None:
    """Nothing else is taken instead."""
    with pytest.raises(LabError, match=message):
        choose({"LAB_PROVIDER": forced}, {**QUESTIONS, Provider.PATH: answer("no etcd on PATH")})


def test_half_an_environment_is_refused(tmp_path: Path) -> None:
    """One address without the other would test two worlds at once."""
    with pytest.raises(LabError, match="LAB_CONSUL_ADDR is set and LAB_KUBECONFIG is not: set both, or neither"):
        from_environment({"LAB_CONSUL_ADDR": "http://consul.example:8500"})
    missing = tmp_path / "kubeconfig"
    addresses = {"LAB_CONSUL_ADDR": "http://consul.example:8500", "LAB_KUBECONFIG": str(missing)}
    assert from_environment(addresses) == f"LAB_KUBECONFIG: there is no file {missing}"
    missing.touch()
    assert from_environment(addresses) is None


@pytest.mark.parametrize(
    ("consul", "trouble"),
    [
        ("Consul v1.22.7", None),
        ("Consul v1.8.7", "{folder}/consul is 1.8, 1.22 is needed"),
        ("hello", "{folder}/consul is of an unknown version, 1.22 is needed"),
        ("", "no consul on PATH"),
    ],
)
def test_programs_on_path_must_fit(tmp_path: Path, consul: str, trouble: str | None) -> None:
    """The same major and minor version of every program that a lab cannot do without."""
    environ = programs(tmp_path, **CORE, **({"consul": consul} if consul else {}))
    assert from_path(environ) == (trouble and trouble.format(folder=tmp_path))


def test_docker_without_an_engine_is_reported_at_once(tmp_path: Path) -> None:
    """The client's last line is the reason."""
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the daemon.' >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    assert from_docker({"PATH": str(tmp_path)}) == "no engine answers (Cannot connect to the daemon.)"
    assert from_docker({"PATH": str(tmp_path / "nowhere")}) == "no docker command on PATH"


def test_docker_without_an_image_is_reported(tmp_path: Path) -> None:
    """An engine that neither has the image nor can pull it is no way."""
    script = '#!/bin/sh\ncase "$1" in version) echo 20.10;; pull) echo "no route" >&2; exit 1;; *) exit 1;; esac\n'
    (tmp_path / "docker").write_text(script)
    (tmp_path / "docker").chmod(0o755)
    found = from_docker({"PATH": f"{tmp_path}:/bin:/usr/bin", "LAB_CONSUL_IMAGE": "mirror.example/consul:1"})
    assert found == "mirror.example/consul:1 is not there and cannot be pulled (no route)"


def test_images_at_hand_are_those_that_the_engine_has(tmp_path: Path) -> None:
    """Nothing is pulled for who does not want to wait."""
    log = tmp_path / "calls"
    script = f'#!/bin/sh\necho "$1 $3" >> {log}\n[ "$1 $3" != "image {{missing}}" ]\n'
    environ = {"PATH": f"{tmp_path}:/bin:/usr/bin", "LAB_CONSUL_IMAGE": "consul:1", "LAB_K3S_IMAGE": "k3s:1"}
    for missing, trouble in (("k3s:1", "k3s:1 is not there"), ("none", None)):
        (tmp_path / "docker").write_text(script.format(missing=missing))
        (tmp_path / "docker").chmod(0o755)
        assert from_images(environ) == trouble
    assert "pull" not in log.read_text()


def test_what_is_at_hand_ends_with_the_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing: no Go is installed and nothing is built to find that out; each reason is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    choice = choose({"PATH": str(tmp_path / "nothing")}, AT_HAND)
    assert choice.provider is Provider.EMBEDDED
    assert list(choice.rejected) == [Provider.ENV, Provider.PATH, Provider.DOCKER, Provider.BUILD]
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def docker_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `docker` that notes each call, and no setting of the lab's in the environment; gives the file of the notes."""
    log = tmp_path / "calls"
    log.touch()
    (tmp_path / "docker").write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("LAB_PROVIDER", "LAB_CONSUL_ADDR", "LAB_KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    caches = (providers.chosen, programs_on_path)
    for cached in caches:
        cached.cache_clear()
    yield log
    for cached in caches:
        cached.cache_clear()


def test_for_programs_no_engine_is_asked(
    docker_that_counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lab of its own, and `make demo`, which is one, neither asks an engine nor lets it pull images."""
    monkeypatch.setattr(build, "binaries", lambda names: {name: Path("/built", name) for name in names})
    assert providers.binaries(["consul", "etcd"]) == {"consul": Path("/built/consul"), "etcd": Path("/built/etcd")}
    Lab(own=True).close()
    assert docker_that_counts.read_text() == ""
    assert providers.chosen().provider is Provider.DOCKER  # which would have asked
    assert docker_that_counts.read_text().startswith("version ")


def test_programs_on_path_count_before_docker(docker_that_counts: Path, tmp_path: Path) -> None:
    """All that every lab needs is there in a fitting version: nothing is built."""
    programs(tmp_path, **CORE, consul="Consul v1.22.7")
    assert providers.binaries(["consul", "etcd"]) == {"consul": tmp_path / "consul", "etcd": tmp_path / "etcd"}
    assert docker_that_counts.read_text() == ""


@pytest.mark.parametrize("forced", ["env", "docker", "build"])
def test_a_forced_way_other_than_path_leaves_path_alone(
    docker_that_counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: str
) -> None:
    """LAB_PROVIDER says where servers come from; their programs are built then."""
    programs(tmp_path, **CORE, consul="Consul v1.22.7")
    monkeypatch.setenv("LAB_PROVIDER", forced)
    assert not programs_on_path()
    assert docker_that_counts.read_text() == ""


def test_images_can_be_named() -> None:
    """LAB_CONSUL_IMAGE and LAB_K3S_IMAGE, an empty one counting as none."""
    assert images({"LAB_CONSUL_IMAGE": "a:1", "LAB_K3S_IMAGE": ""})[0] == "a:1"
    assert images({"LAB_CONSUL_IMAGE": "a:1", "LAB_K3S_IMAGE": ""})[1].startswith("rancher/k3s:")


# --------------------------------------------------------------------------- the cache

GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi
while [ "$1" != -o ]; do shift; done
echo built >> "{log}"
printf half > "$2"; sleep {seconds}; [ "{status}" = 0 ] || {{ echo "no such package"; exit 1; }}
printf whole > "$2"
"""


@pytest.fixture
def toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A go that takes its time, and a cache of the test's own; gives the file with a line for each build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("LAB_PROVIDER", raising=False)
    log = tmp_path / "log"
    _go(tmp_path, log)
    return log


def _go(folder: Path, log: Path, seconds: float = 0.3, status: int = 0) -> None:
    (folder / "go").write_text(GO.format(log=log, seconds=seconds, status=status))
    (folder / "go").chmod(0o755)


def test_a_binary_appears_only_when_it_is_whole(toolchain: Path) -> None:
    """No process that looks during the build finds half of it, and nothing else stays in the cache."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for path in build.cache().glob("etcd-*/etcd"):
                seen.add(path.read_text())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        path = build.binary("etcd")
    finally:
        done.set()
        watcher.join()
    assert path.read_text() == "whole"
    assert seen <= {"whole"}
    assert [entry.name for entry in path.parent.iterdir()] == ["etcd"]


def test_programs_count_as_built_when_all_are_there(toolchain: Path) -> None:
    """Some are not enough."""
    core = [name for name, tool in TOOLS.items() if tool.core]
    build.binaries(core[:-1])
    assert from_cache({}) == "not all were built here yet"
    build.binaries(core)
    assert from_cache({}) is None


def test_with_none_nothing_is_built(toolchain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built before is still there to be used; no servers are chosen."""
    built = build.binary("etcd")
    monkeypatch.setenv("LAB_PROVIDER", "none")
    assert build.binary("etcd") == built
    with pytest.raises(LabError, match="LAB_PROVIDER=none, and not all of these were built before: consul"):
        build.binary("consul")
    with pytest.raises(LabError, match="no servers are wanted"):
        choose({"LAB_PROVIDER": "none"})
    assert toolchain.read_text().splitlines() == ["built"]


def test_two_processes_build_once(toolchain: Path) -> None:
    """The second waits for the first and finds its work done."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=build.binary, args=("etcd",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert toolchain.read_text().splitlines() == ["built"]


def test_a_build_that_fails_leaves_nothing_and_says_why(tmp_path: Path, toolchain: Path) -> None:
    """The compiler's words are the message."""
    _go(tmp_path, toolchain, status=1)
    with pytest.raises(LabError, match="etcd cannot be built:\nno such package"):
        build.binary("etcd")
    assert [p for p in build.cache().rglob("*") if p.is_file()] == [build.cache() / "lock"]


def test_another_toolchain_is_another_entry(tmp_path: Path, toolchain: Path) -> None:
    """The key holds the toolchain, so that a new Go builds again."""
    first = build.binary("etcd")
    text = (tmp_path / "go").read_text().replace("go1.26.0", "go1.26.1")
    (tmp_path / "go").write_text(text)
    assert build.binary("etcd") != first


def test_rare_programs_are_built_only_when_they_are_named(tmp_path: Path, toolchain: Path) -> None:
    """They would cost continuous integration minutes."""
    _go(tmp_path, toolchain, seconds=0)
    assert main(["build"]) == 0
    rare = {name for name, tool in TOOLS.items() if tool.rare}
    assert ({path.name for path in build.cache().glob("*/*")}, "traefik" in rare) == (set(TOOLS) - rare, True)
    assert main(["build", *rare]) == 0
    assert {path.name for path in build.cache().glob("*/*")} == set(TOOLS)


def test_every_tool_has_its_module() -> None:
    """A line of the table is enough, once its module is there: it names the tool, or is the program itself."""
    for tool in TOOLS.values():
        folder = build.HERE / "modules" / tool.module
        assert (folder / "go.sum").is_file()
        words = (folder / "go.mod").read_text().split()
        own = words[words.index("module") + 1]
        assert {"tool", tool.package} <= set(words) or (tool.package == own and (folder / "main.go").is_file())
