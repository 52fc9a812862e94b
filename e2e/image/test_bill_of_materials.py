"""The bill of materials names what is in the image: all of it, and by addresses scanners know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from e2e.image.stages import Image
from e2e.image.test_contents import locked
from pykubeproxy import __version__


@pytest.fixture(scope="module")
def text(image: Image) -> str:
    return (image.root / "usr/share/sbom/pykubeproxy.cdx.json").read_text()


@pytest.fixture(scope="module")
def bill(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def versions(bill: dict[str, Any], kind: str) -> dict[str, str]:
    return {
        component["name"]: component["version"]
        for component in bill["components"]
        if component.get("purl", "").startswith(f"pkg:{kind}/")
    }


def test_it_is_valid_cyclonedx(text: str) -> None:
    assert None is JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_it_names_every_debian_package(image: Image, bill: dict[str, Any]) -> None:
    listing = image.run("dpkg-query", "--show", "--showformat=${Package} ${Version}\\n").stdout
    expected = dict(line.split(" ") for line in listing.splitlines())
    assert {"iptables", "ipset", "kmod", "nftables", "python3.11-minimal"} <= expected.keys()
    assert expected == versions(bill, "deb")


def test_it_names_every_python_package(bill: dict[str, Any]) -> None:
    assert {**locked(), "pykubeproxy": __version__} == versions(bill, "pypi")


def test_it_names_the_system_and_the_image(bill: dict[str, Any]) -> None:
    (system,) = (c for c in bill["components"] if c["type"] == "operating-system")
    assert "debian" == system["name"]
    assert system["version"].startswith("12.")
    assert __version__ == bill["metadata"]["component"]["version"]


def test_it_says_of_which_packages_only_a_part_is_there(bill: dict[str, Any]) -> None:
    partial = {
        component["name"]
        for component in bill["components"]
        for found in component.get("properties", [])
        if found["name"] == "pykubeproxy:partial"
    }
    assert {"kubernetes", "pydantic", "pyroute2"} == partial
