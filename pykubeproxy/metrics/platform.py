"""What is told about the process and the build: constants, and two files of /proc."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pykubeproxy import KUBERNETES_VERSION, __version__
from pykubeproxy.measures import Gauges, Labels, Measure, Readings, Text
from pykubeproxy.settings import GATE_STAGES

__all__ = ["build_measures", "feature_gates", "process_measures"]

_UNLIMITED = float(2**64 - 1)  # as Go shows RLIM_INFINITY
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def build_measures() -> Iterator[Measure]:
    """Which Kubernetes this stands for, and what it really is."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    labels = {
        "major": major,
        "minor": minor,
        "git_version": f"v{KUBERNETES_VERSION}+pykubeproxy-{__version__}",
        "git_commit": "",
        "git_tree_state": "",
        "build_date": "",
        "go_version": f"python{platform.python_version()}",
        "compiler": platform.python_implementation().lower(),
        "platform": f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
    }
    kubernetes = Gauges(
        Text(
            "kubernetes_build_info",
            "A metric with a constant '1' value labeled by major, minor, git version, git commit, "
            "git tree state, build date, Go version, and compiler from which Kubernetes was built, "
            "and platform on which it is running.",
            tuple(labels),
            "BETA",
        )
    )
    kubernetes.set(1, *labels.values())
    yield kubernetes
    ours = Gauges(
        Text(
            "pykubeproxy_build_info",
            "1, with the version of this program and of the Python that runs it",
            ("version", "python"),
        )
    )
    ours.set(1, __version__, platform.python_version())
    yield ours


def feature_gates(gates: Mapping[str, bool]) -> Measure:
    """The feature gates that this program knows, and whether they are on."""
    measure = Gauges(
        Text(
            "kubernetes_feature_enabled",
            "This metric records the data about the stage and enablement of a k8s feature.",
            ("name", "stage"),
            "BETA",
        )
    )
    for name, on in gates.items():
        measure.set(float(on), name, GATE_STAGES.get(name, ""))
    return measure


def process_measures(proc: Path = Path("/proc/self")) -> Iterator[Measure]:
    """What Go's client tells of a process and Python's does not.

    The bytes are those of the whole network namespace (with hostNetwork: the node's), as there.
    """
    yield Readings(
        Text(
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
        ),
        _memory_limit,
    )
    for name, column, doing in (
        ("receive", "InOctets", "received"),
        ("transmit", "OutOctets", "sent"),
    ):
        yield Readings(
            Text(
                f"process_network_{name}_bytes_total",
                f"Number of bytes {doing} by the process over the network.",
            ),
            partial(_octets, proc / "net/netstat", column),
            counter=True,
        )


def _memory_limit() -> dict[Labels, float]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return {(): _UNLIMITED if limit == resource.RLIM_INFINITY else float(limit)}


def _octets(path: Path, column: str) -> dict[Labels, float]:
    """A column of the ``IpExt`` lines, of which the first names the columns."""
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("IpExt:")]
    found = dict(zip(*rows, strict=True)) if len(rows) == 2 else {}
    return {(): float(found[column])} if column in found else {}
