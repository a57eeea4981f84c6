"""NOTICE: what the image ships beside the bridge, under which licences, made from the packages' own metadata.

    python -m tests.support.docs.notice        # writes NOTICE again

`requirements/image.txt` names the packages; the virtual environment has the same versions installed, and their metadata
says the licence (the SPDX expression where there is one). A package that does not say it is an error, not a blank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PINS = ROOT / "requirements" / "image.txt"
NOTICE = ROOT / "NOTICE"

SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "Dual License": "BSD-3-Clause OR Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""SPDX names of the classifiers and free texts that packages of the lock file use."""

HEAD = """consul-endpoints-bridge
Copyright the consul-endpoints-bridge authors

Licensed under the Apache License, Version 2.0 (LICENSE).

The container image contains these packages, unmodified but for modules that are left out (kubernetes: the copy of the
client for asyncio). The licence texts that they ship lie beside them in the image, below /opt/bridge, in
lib/python3*/site-packages/*.dist-info; sbom.cdx.json beside this file lists the same packages with their licences. The
sources of those under the Mozilla Public License 2.0 are the packages themselves, as their projects publish them.

"""

TAIL = """
The base image brings CPython (Python Software Foundation License) and packages of Debian; their licences lie in
/usr/share/doc/*/copyright in the image, and /var/lib/dpkg lists what they came from.
"""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A package of the image: its name, version, and licence as an SPDX expression."""

    name: str
    version: str
    licence: str


def pins() -> dict[str, str]:
    """Name to version of the packages that the image installs on Linux."""
    found = {}
    for line in re.findall(r"^([A-Za-z0-9][^\\\n]*==[^\\\n]*)", PINS.read_text(), re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
            (pin,) = requirement.specifier
            found[requirement.name] = str(pin.version)
    return found


def shipped() -> list[Shipped]:
    """What the image ships, in order of names. Raises ValueError for another version, or a licence that is not said."""
    packages = []
    for name, version in sorted(pins().items()):
        installed = distribution(name)
        if installed.version != version:
            raise ValueError(f"{name}: {installed.version} is installed, requirements/image.txt pins {version}")
        packages.append(Shipped(name, version, licence_of(installed)))
    return packages


def licence_of(package: Distribution) -> str:
    """The licence as an SPDX expression. Raises ValueError when the package's metadata does not tell."""

    def said(field: str) -> list[str]:
        return [str(value) for value in package.metadata.get_all(field) or ()]

    for expression in said("License-Expression"):
        return expression
    classifiers = [c.rpartition(" :: ")[2] for c in said("Classifier") if c.startswith("License ::")]
    for name in (*said("License"), *classifiers):
        if name in SPDX or name in SPDX.values():
            return SPDX.get(name, name)
    raise ValueError(f"{package.name}: no known licence in {said('License')} and {classifiers}")


def text() -> str:
    """NOTICE as it should be."""
    rows = [(p.name, p.version, p.licence) for p in shipped()]
    wide = max(len(name) for name, _, _ in rows)
    table = "".join(f"  {name:<{wide}}  {version:<11}  {licence}\n" for name, version, licence in rows)
    return HEAD + table + TAIL


if __name__ == "__main__":
    NOTICE.write_text(text())
