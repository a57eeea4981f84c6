"""What image/reproducible.py makes of a saved image, on small archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import runpy
import tarfile
from collections.abc import Callable
from typing import IO, Any, cast

import pytest

from tests.support.docs.notice import ROOT

EPOCH = 1767323045
Rewrite = Callable[[IO[bytes], IO[bytes], int, str], tuple[str, str]]
CONFIG = {"User": "65532:65532", "Env": ["PATH=/bin"], "Entrypoint": ["bridge"], "Labels": {"a": "b"}}


def saved(
    created: str = "2026-01-01T00:00:00.1Z", layer: bytes = b"a layer", folder: str = "blobs", **more: Any
) -> bytes:
    """An archive as `docker save` writes it, with what an engine notes of a build."""
    digest = hashlib.sha256(b"a layer").hexdigest()
    config = {
        "architecture": "amd64", "os": "linux", "created": created, "container": created, "docker_version": "x",
        "config": {**CONFIG, "Image": f"sha256:{created}", "OnBuild": None, **more},
        "history": [{"created": created}], "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }  # fmt: skip
    manifest = [{"Config": f"{folder}/config", "RepoTags": None, "Layers": [f"{folder}/layer.tar"]}]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in (
            (f"{folder}/config", json.dumps(config).encode()),
            (f"{folder}/layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def rewritten(archive: bytes, name: str = "bridge:1") -> tuple[str, bytes]:
    """The image id and the archive."""
    rewrite = cast(Rewrite, runpy.run_path(str(ROOT / "image" / "reproducible.py"), run_name="reproducible")["rewrite"])
    made = io.BytesIO()
    image, manifest = rewrite(io.BytesIO(archive), made, EPOCH, name)
    assert json.loads(files(made.getvalue())["index.json"])["manifests"][0]["digest"] == manifest
    return image, made.getvalue()


def files(archive: bytes) -> dict[str, bytes]:
    """Contents by path."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        return {m.name: cast(IO[bytes], read.extractfile(m)).read() for m in read.getmembers()}


def test_two_builds_are_the_same_bytes() -> None:
    """Times, ids of containers, folders in the archive and compression of layers leave no trace."""
    first = rewritten(saved())
    assert rewritten(saved("2027-05-05T00:00:00Z", folder="another")) == first
    assert rewritten(saved(layer=gzip.compress(b"a layer", mtime=7))) == first
    assert rewritten(saved(User="0"))[0] != first[0]


def test_what_a_container_runs_by_stays_and_every_blob_is_under_its_digest() -> None:
    """The id is the digest of the configuration; index, manifest and layer are found from each other."""
    image, archive = rewritten(saved())
    found = files(archive)
    for path, content in found.items():
        if path.startswith("blobs/"):
            assert path == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    config = json.loads(found[f"blobs/{image.replace(':', '/')}"])
    layer = f"sha256:{hashlib.sha256(b'a layer').hexdigest()}"
    assert config == {
        "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z", "config": CONFIG,
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    }  # fmt: skip
    (listed,) = json.loads(found["index.json"])["manifests"]
    manifest = json.loads(found[f"blobs/{listed['digest'].replace(':', '/')}"])
    assert (manifest["config"]["digest"], [entry["digest"] for entry in manifest["layers"]]) == (image, [layer])
    (docker,) = json.loads(found["manifest.json"])
    assert docker["RepoTags"] == ["bridge:1"]
    assert {docker["Config"], *docker["Layers"]} <= found.keys()


@pytest.mark.parametrize("layer", [gzip.compress(b"something else"), b"something else"])
def test_a_layer_that_is_not_what_the_configuration_names_is_refused(layer: bytes) -> None:
    """Else a broken archive would become an image."""
    with pytest.raises(ValueError, match="is not the layer"):
        rewritten(saved(layer=layer))
