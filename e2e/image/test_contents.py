"""What is in the image, and what is not."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from e2e.image.conftest import REPOSITORY
from e2e.image.stages import Image, fingerprints, tar_bytes
from pykubeproxy import __version__

MEGABYTES = 1_000_000
PYTHON = "/opt/pykubeproxy/bin/python"
# What markers of requirements are evaluated for: as in the image, and no extra.
INSIDE = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.2"}
PACKAGES = Path("opt/pykubeproxy/lib/python3.11/site-packages")


def locked() -> dict[str, str]:
    """Names and versions of the lock file."""
    text = (REPOSITORY / "deploy/image/requirements.lock").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE))


def python(image: Image, code: str, *arguments: str) -> str:
    """What *code* prints in the image's environment."""
    done = image.run(PYTHON, "-c", code, *arguments)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def exists(image: Image, path: str) -> bool:
    return (image.root / path.lstrip("/")).is_symlink() or (image.root / path.lstrip("/")).exists()


# --- size and configuration ----------------------------------------------------------------------


def test_the_image_stays_below_150_megabytes(image: Image) -> None:
    by_layer = {layer.instruction[:60]: layer.size_bytes for layer in image.layers}
    assert 150 * MEGABYTES > image.size_bytes, by_layer
    assert 150 * MEGABYTES > tar_bytes(image.root), by_layer


def test_the_stand_in_for_the_base_weighs_what_the_official_image_does(image: Image) -> None:
    # 74.8 MB for linux/amd64; else the figure above would say nothing.
    assert 70 * MEGABYTES < image.base_bytes < 80 * MEGABYTES


def test_its_configuration_says_how_it_runs_and_what_it_is(image: Image) -> None:
    assert ["/usr/local/bin/pykubeproxy"] == image.entrypoint
    assert "0:0" == image.user
    assert ("10249", "10256") == image.ports
    assert "1" == image.environment["PYTHONUNBUFFERED"]
    assert "1" == image.environment["PYTHONDONTWRITEBYTECODE"]
    labels = {name.removeprefix("org.opencontainers.image."): v for name, v in image.labels.items()}
    assert __version__ == labels["version"]
    assert "0123abc" == labels["revision"]
    assert "debian:bookworm-slim" == labels["base.name"]


# --- the program ---------------------------------------------------------------------------------


def test_version_is_said_from_a_read_only_root(image: Image) -> None:
    done = image.start("--version")
    assert (0, "") == (done.returncode, done.stderr)
    assert f"pykubeproxy {__version__} " in done.stdout


def test_help_is_said(image: Image) -> None:
    done = image.start("--help")
    assert (0, "") == (done.returncode, done.stderr)
    assert "--proxy-mode" in done.stdout


@pytest.mark.parametrize(
    "path", ["pykubeproxy", "/usr/local/bin/kube-proxy", "/opt/pykubeproxy/bin/pykubeproxy"]
)
def test_the_program_is_found_by_each_of_its_names(image: Image, path: str) -> None:
    assert image.start("--version").stdout == image.run(path, "--version").stdout


def test_our_package_is_installed_complete_and_not_editable(image: Image, context: Path) -> None:
    source, installed = context / "pykubeproxy", image.root / PACKAGES / "pykubeproxy"
    expected = {str(path.relative_to(source)) for path in source.rglob("*.py")} | {"py.typed"}
    found = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    assert expected == {name for name in found if not name.endswith(".pyc")}
    assert [] == list((image.root / PACKAGES).glob("*.pth"))
    location = python(image, "import pykubeproxy; print(pykubeproxy.__file__)").strip()
    assert f"/{PACKAGES}/pykubeproxy/__init__.py" == location


def test_bytecode_is_there_and_asks_for_no_time_of_a_file(image: Image) -> None:
    unchecked_hash = 0b01
    sources = [p for p in (image.root / PACKAGES).rglob("*.py") if "__pycache__" not in p.parts]
    flags = {}
    for path in sources:
        compiled = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
        flags[str(path)] = compiled.read_bytes()[4] if compiled.exists() else None
    wrong = {path: flag for path, flag in flags.items() if flag != unchecked_hash}
    assert {} == wrong
    assert len(sources) > 100


# --- Python packages -----------------------------------------------------------------------------


def test_the_packages_are_those_of_the_lock_file(image: Image) -> None:
    listing = python(
        image,
        "import importlib.metadata as m, json, sys\n"
        "found = m.distributions(path=[sys.argv[1]])\n"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in found}))",
        f"/{PACKAGES}",
    )
    assert {**locked(), "pykubeproxy": __version__} == json.loads(listing)


def excluded() -> set[str]:
    """What the lock file leaves out on purpose."""
    text = (REPOSITORY / "deploy/image/requirements.lock").read_text()
    _, _, names = text.partition("# The following packages were excluded from the output:\n")
    return {name.removeprefix("# ") for name in names.splitlines()}


def test_nothing_is_missing_but_what_is_left_out_on_purpose(image: Image) -> None:
    listing = python(
        image,
        "import importlib.metadata as m, json, sys\n"
        "found = m.distributions(path=[sys.argv[1]])\n"
        "print(json.dumps([text for d in found for text in d.requires or []]))",
        f"/{PACKAGES}",
    )
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, json.loads(listing))
        if requirement.marker is None or requirement.marker.evaluate(INSIDE)
    }
    missing = needed - locked().keys()
    assert {"aiohttp", "aiohttp-retry", "tzdata"} == missing
    assert missing <= excluded()


IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, f"{name}."):
        # Those are programs, which run when they are imported.
        if found.name.rpartition(".")[2] not in ("__main__", "example"):
            importlib.import_module(found.name)
print(len([name for name in sys.modules if name.startswith("kubernetes.")]))
"""


def test_everything_of_ours_and_what_stays_of_the_trimmed_package_can_be_imported(
    image: Image,
) -> None:
    assert 30 < int(python(image, IMPORT_ALL, "pykubeproxy", "kubernetes")) < 100


def test_a_credential_that_only_the_kubernetes_package_can_read_is_read(
    spare: Image, tmp_path: Path
) -> None:
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-the-plugin"},
    }
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "Never",
        "command": PYTHON,
        "args": ["-c", f"print({json.dumps(answer)!r})"],
    }
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1"}}],
        "users": [{"name": "u", "user": {"exec": plugin}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(kubeconfig))
    code = (
        "import sys\nfrom pykubeproxy.watch.login import loader_for\n"
        "print(loader_for(sys.argv[1], None)().authorization())"
    )
    done = spare.run(PYTHON, "-c", code, str(file), lent=[file])
    assert (0, "Bearer from-the-plugin\n") == (done.returncode, done.stdout), done.stderr


# --- programs ------------------------------------------------------------------------------------


def called_programs() -> set[str]:
    """What our code runs by name, found in its text, so that a new one is not forgotten."""
    called = set()
    for path in (REPOSITORY / "pykubeproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and "runner" in ast.unparse(node.func)
                and node.args
                and isinstance(node.args[0], ast.List)
                and isinstance(node.args[0].elts[0], ast.Constant)
            ):
                called.add(str(node.args[0].elts[0].value))
    return called


def test_every_program_that_the_daemon_calls_is_there(image: Image) -> None:
    assert {"modprobe", "nft"} <= called_programs()
    tools = [
        f"{stem}-{variant}{kind}"
        for stem in ("iptables", "ip6tables")
        for variant in ("nft", "legacy")
        for kind in ("", "-restore", "-save")
    ]
    for program in [*called_programs(), *tools, "ipset"]:
        done = image.run(program, "--version")
        assert 0 == done.returncode, f"{program}: {done.stderr}"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_each_variant_is_what_its_name_says(image: Image, variant: str) -> None:
    says = {"nft": "(nf_tables)", "legacy": "(legacy)"}[variant]
    assert says in image.run(f"iptables-{variant}", "--version").stdout
    assert says in image.run(f"ip6tables-{variant}", "--version").stdout


@pytest.mark.parametrize(
    "name", ["as", "c++", "cc", "curl", "g++", "gcc", "ld", "make", "pip", "pip3", "strip", "wget"]
)
def test_there_is_nothing_to_compile_or_install_with(image: Image, name: str) -> None:
    directories = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "opt/pykubeproxy/bin")
    assert [] == [d for d in directories if exists(image, f"{d}/{name}")]


def test_python_has_no_installer(image: Image) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "print([n for n in ('pip', 'setuptools', 'ensurepip', 'wheel') if find_spec(n)])"
    )
    assert "[]\n" == python(image, code)


@pytest.mark.parametrize(
    "directory", ["var/lib/apt/lists", "var/cache/apt/archives", "var/log", "tmp", "root/.cache"]
)
def test_nothing_is_left_of_the_installation(image: Image, directory: str) -> None:
    left = [p for p in (image.root / directory).rglob("*") if p.is_file() and p.name != "lock"]
    assert [] == [str(path) for path in left if path.stat().st_size]


# --- built twice ---------------------------------------------------------------------------------


def test_two_builds_are_the_same_to_the_byte(builds: tuple[Image, Image]) -> None:
    first, second = (fingerprints(image.root) for image in builds)
    assert {} == {
        path: (first.get(path), second.get(path))
        for path in first.keys() | second.keys()
        if first.get(path) != second.get(path)
    }
