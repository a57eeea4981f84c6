"""Rewrites a built image so that its digest depends on what it holds, and on nothing of the build.

    docker save IMAGE | python image/reproducible.py EPOCH NAME:TAG | docker load

The layers are the same in every build (`image/slim.py`), but an engine adds to the image's configuration when and how
it was built: the time, the ids of intermediate containers, its own version, history. What comes out has the
configuration that a container runs by, the layers, EPOCH (seconds) for every time, and no history. It is an OCI layout
that `docker load`, `skopeo` and containerd take, and the same bytes each time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

RUNS_BY = ("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal")
"""The fields of OCI's image configuration that say how a container runs; all others tell of the build."""
_OCI = "application/vnd.oci.image"

Json = dict[str, Any]


def configuration(built: Mapping[str, Any], epoch: int) -> Json:
    """The image configuration without traces of the build."""
    runs_by = built.get("config") or {}
    return {
        "created": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{key: built[key] for key in ("architecture", "variant", "os") if built.get(key)},
        "config": {key: runs_by[key] for key in RUNS_BY if runs_by.get(key)},
        "rootfs": {"type": "layers", "diff_ids": list(built["rootfs"]["diff_ids"])},
    }


def rewrite(saved: IO[bytes], written: IO[bytes], epoch: int, name: str) -> tuple[str, str]:
    """Read what `docker save` gave for one image, write it again as `name`; the image id and the manifest's digest."""
    with (
        tarfile.open(fileobj=saved) as source,
        tarfile.open(fileobj=written, mode="w|", format=tarfile.PAX_FORMAT) as to,
    ):
        (image,) = json.loads(_read(source, "manifest.json"))
        config = _json(configuration(json.loads(_read(source, image["Config"])), epoch))
        layers = []
        for layer, digest in zip(image["Layers"], json.loads(config)["rootfs"]["diff_ids"], strict=True):
            with _plain(source, layer, digest) as content:
                size = content.seek(0, io.SEEK_END)
                content.seek(0)
                _add(to, _path(digest), content, size, epoch)
            layers.append({"mediaType": f"{_OCI}.layer.v1.tar", "digest": digest, "size": size})
        entry = {"mediaType": f"{_OCI}.config.v1+json", "digest": _digest(config), "size": len(config)}
        manifest = _json(
            {"schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json", "config": entry, "layers": layers}
        )
        index = {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.index.v1+json",
            "manifests": [{
                "mediaType": f"{_OCI}.manifest.v1+json", "digest": _digest(manifest), "size": len(manifest),
                "annotations": {
                    "io.containerd.image.name": f"docker.io/library/{name}",
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }],
        }  # fmt: skip
        docker = [{
            "Config": _path(_digest(config)),
            "RepoTags": [name],
            "Layers": [_path(layer["digest"]) for layer in layers],
        }]  # fmt: skip
        for path, content in (
            (_path(_digest(config)), config),
            (_path(_digest(manifest)), manifest),
            ("index.json", _json(index)),
            ("manifest.json", _json(docker)),
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
        ):
            _add(to, path, io.BytesIO(content), len(content), epoch)
        return _digest(config), _digest(manifest)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    return _open(archive, name).read()


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise ValueError(f"{name} in the saved image is no file")
    return found


def _plain(archive: tarfile.TarFile, name: str, digest: str) -> IO[bytes]:
    """A layer as the tar that its diff id is the digest of; some engines store (and save) it compressed."""
    found = _open(archive, name)
    if _sum(found) == digest:
        return found
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with gzip.open(found) as content:
            shutil.copyfileobj(content, plain)
    except gzip.BadGzipFile:
        plain.truncate(0)
    if _sum(plain) != digest:
        plain.close()
        raise ValueError(f"{name} is not the layer {digest}, neither as it is nor unpacked by gzip")
    return plain


def _sum(content: IO[bytes]) -> str:
    content.seek(0)
    digest = hashlib.file_digest(content, "sha256")  # type: ignore[arg-type]
    content.seek(0)
    return f"sha256:{digest.hexdigest()}"


def _add(archive: tarfile.TarFile, path: str, content: IO[bytes], size: int, epoch: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mtime = size, epoch
    archive.addfile(entry, content)


def main(epoch: int, name: str) -> None:
    """Standard input to standard output; the manifest of a saved image lies at its end, so all of it is kept first."""
    with tempfile.TemporaryFile() as saved:
        while piece := sys.stdin.buffer.read(1 << 20):
            saved.write(piece)
        saved.seek(0)
        image, manifest = rewrite(saved, sys.stdout.buffer, epoch, name)
    sys.stderr.write(f"{name} is {image}, its manifest {manifest}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
