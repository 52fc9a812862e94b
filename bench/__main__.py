"""``python -m bench run``: what starts and single changes cost; ``figures``: show it.

Runs the real code on the real kernel, each job in a process and network namespace of its own;
ipvs mode in a guest where this kernel has no IPVS (`e2e.guest`). Machines are noisy: compare
runs of one call, not of different days.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from bench import figures, netns
from bench.measure import Row
from bench.results import BACKENDS, HEADER, Job, Machine, Results, Run, line, load, save
from bench.worlds import World

GUEST_MEMORY_MIB = 2048
PARTS = ("stages", "daemon")
SHARES = ("node_ports", "load_balancers", "udp", "empty")


def main() -> int:
    options = _parser().parse_args()
    match options.command:
        case "inside":
            job = msgspec.json.decode(options.job, type=Job)
            sys.stdout.write(msgspec.json.encode(_measure(job)).decode() + "\n")
        case "figures":
            figures.publish(options.file)
        case "run":
            _run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; for root")
    run.add_argument("--backend", nargs="+", choices=BACKENDS, default=["nft", "legacy"])
    run.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    run.add_argument("--add", action="store_true", help="keep what else FILE has")
    run.add_argument("--dual-stack", action="store_true")
    for share in SHARES:
        option = f"--{share.replace('_', '-')}"
        run.add_argument(option, type=float, default=0.0, metavar="SHARE", help="of Services, 0-1")
    run.add_argument("worlds", nargs="+", type=World.parse, metavar="SERVICESxENDPOINTS")
    show = commands.add_parser("figures", help="draw FILE's picture, and fill in its page's tables")
    show.add_argument("file", type=Path, metavar="FILE")
    commands.add_parser("inside").add_argument("job")
    return parser


def _run(options: argparse.Namespace) -> None:
    kinds = {name: getattr(options, name) for name in (*SHARES, "dual_stack")}
    results = Results(Machine.here())
    if options.add and options.json.exists():
        results = load(options.json)
    jobs = [Job("memory", "nft", World(0, 0))] if "stages" in options.part else []
    for world in options.worlds:
        sized = msgspec.structs.replace(world, **kinds)
        jobs += [Job(part, backend, sized) for part in options.part for backend in options.backend]
    print(HEADER)
    for job in jobs:
        print(f"{job.part}, {job.backend}, {job.world}")
        run = Run(job, _in_a_process(job))
        print(*map(line, run.rows), sep="\n", flush=True)
        results.add(run)
        if options.json:
            save(results, options.json)


def _in_a_process(job: Job) -> list[Row]:
    argv = [sys.executable, "-m", "bench", "inside", msgspec.json.encode(job).decode()]
    if job.backend == "ipvs":
        argv = [sys.executable, "-m", "e2e.guest", f"--memory={GUEST_MEMORY_MIB}", "--", *argv]
    finished = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        sys.exit(f"{job}: {finished.stdout.decode(errors='replace')}")
    return msgspec.json.decode(finished.stdout.splitlines()[-1], type=list[Row])


def _measure(job: Job) -> list[Row]:
    # Late imports: ipvs loads what a kernel without it has no use for.
    from bench import iptables, memory
    from bench.life import live
    from pykubeproxy.iptables.variant import Variant

    if job.part == "memory":
        return memory.measure()
    netns.enter_new()
    with ExitStack() as parts:
        if job.backend == "ipvs":
            from bench import ipvs

            if job.part == "stages":
                return ipvs.measure(job.world)
            return live(["--proxy-mode=ipvs"], job.world, ipvs.VirtualServers(parts))
        variant = Variant(job.backend)
        if job.part == "stages":
            return iptables.measure(variant, job.world)
        from bench.connections import Connections, connect_rows

        compare = partial(connect_rows, partial(iptables.serve_nothing, variant))
        witness = parts.enter_context(Connections(job.world))
        return live([f"--iptables-variant={variant}"], job.world, witness, compare)


if __name__ == "__main__":
    sys.exit(main())
