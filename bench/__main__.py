"""``python -m bench [--mode MODE] [SERVICES ENDPOINTS]``: what a start and single changes cost.

Runs the real code on the real kernel, in network namespaces that end with their processes; ipvs
mode in a guest where this kernel has no IPVS (`e2e.guest`), and there once without and once with
the daemon. Wall and CPU seconds are of the process and its children. Machines are noisy: compare
runs of one call, not of different days.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable

import msgspec

from bench.measure import Row
from pykubeproxy.iptables.variant import Variant

CLONE_NEWNET = 0x40000000
GUEST_MEMORY_MIB = 2048


def main() -> int:
    options = _parser().parse_args()
    if options.inside:
        _enter_namespace()
        rows = _parts()[options.inside](options.services, options.endpoints)
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return 0
    print(f"{options.services} Services x {options.endpoints} endpoints, IPv4; milliseconds")
    print(
        f"{'':40}{'wall':>10}{'p99':>10}{'cpu self':>10}{'cpu tools':>10}"
        f"{'messages':>10}{'programs':>10}"
    )
    found = {}
    for part in _parts():
        if part.startswith(options.mode):
            found[part] = rows = _run(part, options)
            for row in rows:
                print(_line(part, row))
    if options.json:
        with open(options.json, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--mode", choices=["iptables", "ipvs"], default="iptables")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("services", nargs="?", type=int, default=10000)
    parser.add_argument("endpoints", nargs="?", type=int, default=5)
    return parser


def _parts() -> dict[str, Callable[[int, int], list[Row]]]:
    """What is measured, each in a process of its own. The ipvs parts load test helpers."""

    def variant(which: Variant) -> Callable[[int, int], list[Row]]:
        def run(services: int, endpoints: int) -> list[Row]:
            from bench.iptables import passes

            return passes(which, services, endpoints)

        return run

    def stages(services: int, endpoints: int) -> list[Row]:
        from bench.ipvs import stages

        return stages(services, endpoints)

    def daemon(services: int, endpoints: int) -> list[Row]:
        from bench.daemon import life

        return life(services, endpoints)

    variants = {f"iptables {which}": variant(which) for which in Variant}
    return {**variants, "ipvs stages": stages, "ipvs daemon": daemon}


def _run(part: str, options: argparse.Namespace) -> list[Row]:
    inside = [sys.executable, "-m", "bench", "--inside", part]
    argv = [*inside, str(options.services), str(options.endpoints)]
    if options.mode == "ipvs":
        guest = [sys.executable, "-m", "e2e.guest", f"--memory={GUEST_MEMORY_MIB}"]
        argv = [*guest, "--", *argv]
    finished = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        sys.exit(f"{part}: {finished.stdout.decode(errors='replace')}")
    return msgspec.json.decode(finished.stdout.splitlines()[-1], type=list[Row])


def _line(part: str, row: Row) -> str:
    times = (row.wall, row.p99, row.own, row.tools)
    shown = "".join(f"{1000 * seconds:10.1f}" if seconds else f"{'':10}" for seconds in times)
    counts = "".join(f"{count or '':>10}" for count in (row.messages, row.programs))
    return f"{part + ': ' + row.what:40}{shown}{counts}"


def _enter_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "network namespace")
    # IPVS takes no real server in a namespace without any address.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


if __name__ == "__main__":
    sys.exit(main())
