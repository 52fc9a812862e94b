"""Writes the bill of materials of the image it runs in: CycloneDX 1.6, JSON.

Every Debian package that dpkg knows and every Python package in the environment, with the address
(purl) under which scanners look for advisories. The same packages give the same bytes: the order
is fixed, the serial number is made from the content and the time is SOURCE_DATE_EPOCH.

    sbom.py /opt/pykubeproxy FILE
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

PROGRAM = "pykubeproxy"
PARTIAL = {
    "kubernetes": "without the asynchronous client, API groups and models (deploy/image/trim.py)",
    "pydantic": "without pydantic.v1 (deploy/image/trim.py)",
    "pyroute2": "without pyroute2.dhcp (deploy/image/trim.py)",
}
"""Packages of which the image has a part: what an advisory says of the rest does not apply."""

Component = dict[str, Any]

_QUERY = r"${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\n"


def debian_packages() -> Iterator[Component]:
    """What dpkg has installed here, in the order of its names."""
    release = platform.freedesktop_os_release()
    distribution = f"{release['ID']}-{release['VERSION_ID']}"
    yield {
        "type": "operating-system",
        "bom-ref": distribution,
        "name": release["ID"],
        "version": Path("/etc/debian_version").read_text().strip(),
        "description": release["PRETTY_NAME"],
    }
    listing = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={_QUERY}"], capture_output=True, check=True
    )
    for line in sorted(listing.stdout.decode().splitlines()):
        status, name, version, architecture, source = line.split("\t")
        if not status.startswith("ii"):
            continue
        purl = (
            f"pkg:deb/debian/{quote(name)}@{quote(version)}"
            f"?arch={architecture}&distro={distribution}"
        )
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "properties": [{"name": "debian:source", "value": source}],
        }


def python_packages(environment: Path) -> Iterator[Component]:
    """What is installed in the environment, by name; the program itself is among it."""
    (packages,) = environment.glob("lib/python3.*/site-packages")
    found = distributions(path=[str(packages)])
    for package in sorted(found, key=lambda package: package.name.lower()):
        name = package.name.lower().replace("_", "-")
        purl = f"pkg:pypi/{quote(name)}@{quote(package.version)}"
        # The package's own notion of its metadata is a subset of what it is.
        metadata = cast("Message", package.metadata)
        component: Component = {
            "type": "application" if name == PROGRAM else "library",
            "bom-ref": purl,
            "name": name,
            "version": package.version,
            "purl": purl,
        }
        if summary := metadata.get("Summary"):
            component["description"] = summary
        if expression := metadata.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        elif (text := metadata.get("License")) and "\n" not in text:
            component["licenses"] = [{"license": {"name": text}}]
        if name in PARTIAL:
            component["properties"] = [{"name": f"{PROGRAM}:partial", "value": PARTIAL[name]}]
        yield component


def bill(components: list[Component], epoch: int) -> dict[str, Any]:
    """The whole document."""
    (program,) = (found for found in components if found["name"] == PROGRAM)
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": PROGRAM,
        "version": program["version"],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, json.dumps(components))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": image,
        },
        "components": components,
        "dependencies": [
            {"ref": "image", "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }


def main() -> None:
    environment, target = map(Path, sys.argv[1:])
    components = [*debian_packages(), *python_packages(environment)]
    document = bill(components, int(os.environ["SOURCE_DATE_EPOCH"]))
    target.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
