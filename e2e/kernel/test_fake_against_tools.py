"""The fake of the iptables tools says and does what the real tools say and do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from e2e.lab import Lab
from pykubeproxy.host.exec import Finished
from tests.fakes.xtables import Xtables
from tests.fakes.xtables_cases import BASE, CASES, NFACCT, Case, spelled

VARIANTS = ("nft", "legacy")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(serve=()) as lab:
        lab.run("node", "nfacct", "add", NFACCT)
        yield lab


class Real:
    """The tools of one variant and family in the node namespace of a lab."""

    def __init__(self, lab: Lab, variant: str, version: int) -> None:
        self.lab = lab
        self.stem = ("iptables" if version == 4 else "ip6tables") + f"-{variant}"
        self.version = version

    def run(self, step: str | tuple[str, ...]) -> tuple[int, str]:
        if isinstance(step, str):
            argv = [f"{self.stem}-restore", "--noflush", "-w", "5"]
            done = self.lab.run("node", *argv, input=spelled(step, self.version), check=False)
        else:
            words = [spelled(word, self.version) for word in step]
            done = self.lab.run("node", self.stem, "-w", "5", *words, check=False)
        return done.returncode, done.stderr.decode()

    def clear(self) -> None:
        text = "".join(
            f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains) + "COMMIT\n"
            for table, chains in (
                ("filter", ("INPUT", "FORWARD", "OUTPUT")),
                ("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
            )
        )
        self.lab.run("node", f"{self.stem}-restore", input=text)

    def saved(self) -> dict[str, list[str]]:
        return by_table(self.lab.run("node", f"{self.stem}-save").stdout.decode())


def by_table(text: str) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {"filter": [], "nat": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name = line[1:]
        elif line.startswith((":", "-")):
            tables[name].append(re.sub(r"\[\d+:\d+\]", "[0:0]", line))
    empty = [":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    if tables["filter"] == empty:
        tables["filter"] = []
    return tables


def step_by_step(version: int, variant: str, case: Case) -> tuple[Xtables, Finished]:
    fake = Xtables(version, nft=variant == "nft", nfacct=[NFACCT])
    stem = "iptables" if version == 4 else "ip6tables"
    done = Finished(0, b"", b"")
    for step in (BASE, *case.steps):
        if isinstance(step, str):
            result = fake.run([f"{stem}-restore", "--noflush"], spelled(step, version).encode())
        else:
            result = fake.run([stem, *(spelled(word, version) for word in step)])
        assert isinstance(result, Finished)
        done = result
    return fake, done


def line_named(stderr: str) -> str | None:
    found = re.search(r"\bline:? (\d+)\b", stderr)
    return found[1] if found else None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fake_agrees_with_the_tools(lab: Lab, case: Case, version: int, variant: str) -> None:
    real = Real(lab, variant, version)
    real.clear()
    for step in (BASE, *case.steps[:-1]):
        status, said = real.run(step)
        assert status == 0, said
    status, said = real.run(case.steps[-1])
    fake, done = step_by_step(version, variant, case)
    assert case.refused == (status != 0), said
    assert (status, line_named(said)) == (done.exit_status, line_named(done.complaint)), (
        f"tool: {said}\nfake: {done.complaint}"
    )
    saved = fake.run([real.stem.split("-")[0] + "-save"])
    assert isinstance(saved, Finished)
    assert real.saved() == by_table(saved.stdout.decode())
