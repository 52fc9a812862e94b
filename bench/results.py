"""The figures of a run as a file, and as tables that people read."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.measure import Row
from bench.stages import STAGES
from bench.worlds import World

__all__ = ["HEADER", "Job", "Machine", "Results", "Run", "line", "load", "markdown", "save"]

BACKENDS = {"nft": "nf_tables", "legacy": "legacy", "ipvs": "ipvs"}
SPLIT = ("first write", "one endpoint changed")
"""What is shown stage by stage."""


HEADER = f"  {'':36}" + "".join(
    f"{name:>12}"
    for name in ("wall", "p99", "cpu self", "cpu tools", "floor", "messages", "programs")
)


class Job(Struct, frozen=True, omit_defaults=True):
    """One thing to measure in a process of its own; *backend* is an iptables variant or ``ipvs``.

    *part*: ``stages`` (passes taken apart), ``daemon`` (from outside), ``memory``.
    """

    part: str
    backend: str
    world: World


class Run(Struct):
    job: Job
    rows: list[Row]

    def row(self, what: str) -> Row | None:
        return next((row for row in self.rows if row.what == what), None)


class Machine(Struct):
    cpus: int
    kernel: str
    iptables: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        said = subprocess.run(["iptables", "--version"], capture_output=True, check=False)
        return cls(
            os.cpu_count() or 1,
            platform.release(),
            (said.stdout.split() or [b"?", b"?"])[1].decode().lstrip("v"),
            platform.python_version(),
        )


class Results(Struct):
    machine: Machine
    runs: list[Run] = []

    def add(self, run: Run) -> None:
        """Take *run* in, instead of an earlier one of the same job."""
        self.runs = [other for other in self.runs if other.job != run.job] + [run]

    def of(self, part: str, backend: str) -> list[Run]:
        """The runs of one part, small worlds first."""
        found = [r for r in self.runs if (r.job.part, r.job.backend) == (part, backend)]
        return sorted(found, key=lambda r: (r.job.world.endpoints, r.job.world.services))


def load(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def save(results: Results, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def line(row: Row) -> str:
    """A row for the terminal: value, 99th percentile, CPU, floor; what was sent; stages."""
    cells = [_value(row), _seconds(row.p99), _seconds(row.own), _seconds(row.tools)]
    cells.append(_seconds(row.floor.wall) if row.floor else "")
    cells += [str(count or "") for count in (row.messages, row.programs)]
    stages = ", ".join(f"{s} {_seconds(row.stages[s])}" for s in row.stages if row.stages[s] > 1e-4)
    return f"  {row.what:36}" + "".join(f"{cell:>12}" for cell in cells) + f"  {stages}"


def markdown(results: Results) -> str:
    """Every figure as tables: worlds across, what was measured down."""
    machine = results.machine
    parts = [
        f"{machine.cpus} cores, Linux {machine.kernel}, iptables {machine.iptables}, "
        f"Python {machine.python}."
    ]
    for backend, name in BACKENDS.items():
        parts += _table(f"From outside, {name}", results.of("daemon", backend), _from_outside)
        stages = results.of("stages", backend)
        parts += _table(f"Passes, {name}: wall (the kernel's floor)", stages, _passes)
        for what in SPLIT:
            parts += _table(f"Stages of: {what}, {name}", stages, partial(_stages, what))
    for run in results.of("memory", "nft"):
        parts.append("Memory for " + ", ".join(f"{r.what}: {_value(r)}" for r in run.rows) + ".")
    return "\n\n".join(parts) + "\n"


# --- tables ---


def _table(
    title: str, runs: Sequence[Run], cells: Callable[[Run], Mapping[str, str]]
) -> Iterator[str]:
    """A heading and a table with one column per run, or nothing without runs."""
    if not runs:
        return
    columns = [cells(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [["", *(_title(run.job.world) for run in runs)], ["---"] + ["---:"] * len(runs)]
    lines += [[name, *(column.get(name, "") for column in columns)] for name in names]
    yield f"### {title}"
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _from_outside(run: Run) -> dict[str, str]:
    cells = {}
    for row in run.rows:
        cells[row.what] = _value(row) + (f" / {_seconds(row.p99)}" if row.p99 else "")
        if row.own:
            cells[f"{row.what}: CPU"] = _seconds(row.own)
        if row.what.startswith("restart"):
            cells[f"{row.what}: rules written"] = str(row.messages)
    return cells


def _passes(run: Run) -> dict[str, str]:
    return {
        row.what: _value(row) + (f" ({_seconds(row.floor.wall)})" if row.floor else "")
        for row in run.rows
    }


def _stages(what: str, run: Run) -> dict[str, str]:
    row = run.row(what)
    if row is None:
        return {}
    cells = {stage: _seconds(row.stages.get(stage, 0.0)) for stage in STAGES}
    cells["whole"] = _seconds(row.value)
    cells["CPU: own, tools"] = f"{_seconds(row.own)}, {_seconds(row.tools)}"
    if row.floor is not None:
        cells["the kernel's floor"] = _seconds(row.floor.wall)
        cells["CPU of the floor"] = _seconds(row.floor.tools)
    cells["messages, programs"] = f"{row.messages:,}, {row.programs}"
    return cells


def _title(world: World) -> str:
    return f"{world.services:,} x {world.endpoints:,}"


def _value(row: Row) -> str:
    match row.unit:
        case "s":
            return _seconds(row.value)
        case "":
            return f"{row.value:.0f}"
        case unit:
            digits = 0 if row.value >= 100 else 1
            return f"{row.value:,.{digits}f} {unit}"


def _seconds(seconds: float) -> str:
    """In the unit that reads best; nothing for nothing."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{1000 * seconds:.3g} ms"
    return f"{1e6 * seconds:.3g} us" if seconds else ""
