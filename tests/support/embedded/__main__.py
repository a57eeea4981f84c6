"""`python -m tests.support.embedded FOLDER`: both stand-ins until SIGTERM or Ctrl-C, and where they are in FOLDER."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from tests.support.embedded.consul import EmbeddedConsul
from tests.support.fakes.kube import FakeKube


def main(folder: Path) -> int:
    """Serve; say where, in the file about.json that appears when both answer, and on standard output."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    folder.mkdir(parents=True, exist_ok=True)
    consul = EmbeddedConsul()
    with consul, FakeKube() as kube:
        about = {"consul": consul.address, "kubernetes": kube.url, "kubeconfig": kube.kubeconfig(folder)}
        new = folder / "about.json.new"
        new.write_text(json.dumps(about))
        new.replace(folder / "about.json")
        print(
            "Embedded stand-ins, no real servers:\n"
            f"export CONSUL_HTTP_ADDR={consul.address} KUBECONFIG={about['kubeconfig']}",
            flush=True,
        )
        ended.wait()
        consul.unexpected.clear()  # here anyone may ask for anything
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.embedded FOLDER")
    sys.exit(main(Path(sys.argv[1]).resolve()))
