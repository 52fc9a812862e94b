"""``--cleanup --dry-run`` lists what ``--cleanup`` then removes, and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon
from e2e.kernel.test_daemon import web
from e2e.lab import Lab

FAMILIES = {4: "iptables", 6: "ip6tables"}
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
NOT_OURS = """\
*nat
:MY-CHAIN - [0:0]
-A PREROUTING -j MY-CHAIN
COMMIT
"""


@pytest.fixture
def stopped(lab: Lab, variant: str, tmp_path: Path) -> RunningDaemon:
    """A daemon that wrote its rules, and has ended; besides it, what kube-proxy and others left."""
    daemon = RunningDaemon(lab, variant, tmp_path)
    daemon.restore(NOT_OURS)
    daemon.write("web", *web("p1"))
    daemon.start()
    daemon.stop()
    lab.run("node", "nft", "-f", "-", input="table ip6 kube-proxy {\n}\ntable ip theirs {\n}\n")
    return daemon


def whole_state(daemon: RunningDaemon) -> dict[str, bytes]:
    """The kernel's rules, of whatever tool, and the state directory; no counts, no times."""
    lab, state = daemon.lab, state_directory(daemon)
    found = {"nft": lab.run("node", "nft", "--stateless", "list", "ruleset").stdout}
    for stem in FAMILIES.values():
        listing = lab.run("node", f"{stem}-legacy-save").stdout
        found[stem] = re.sub(rb"^#.*\n| \[\d+:\d+\]$", b"", listing, flags=re.M)
        names = f"/proc/net/{stem.replace('tables', '_tables')}_names"
        found[f"{stem} tables"] = lab.run("node", "cat", names, check=False).stdout
    found |= {str(path): path.read_bytes() for path in state.iterdir()}
    return found


def state_directory(daemon: RunningDaemon) -> Path:
    return daemon.manifests.parent / "state"


def things(daemon: RunningDaemon) -> set[str]:
    """What there is that a cleanup could take, as it would be listed."""
    found = set()
    for family, stem in FAMILIES.items():
        for table in ("nat", "filter", "mangle"):
            where = f"{stem}-{daemon.variant}, table {table}:"
            lines = daemon.saved(table, family)
            rules = [line.split()[1] for line in lines if line.startswith("-A ")]
            for line in lines:
                if line.startswith(":"):
                    chain, n = line[1:].split()[0], rules.count(line[1:].split()[0])
                    found.add(f"{where} chain {chain} with {n} rule{'' if n == 1 else 's'}")
                elif line.startswith(tuple(f"-A {name} " for name in BUILT_IN)):
                    found.add(f"{where} rule {line}")
    tables = daemon.lab.run("node", "nft", "list", "tables").stdout.decode().splitlines()
    found |= {f"nftables: {table}" for table in tables if "kube-proxy" in table or "their" in table}
    found |= {f"file {path}" for path in state_directory(daemon).glob("*")}
    return found


def test_the_list_is_what_goes_and_nothing_else_changes(stopped: RunningDaemon) -> None:
    flags = ("--cleanup", f"--state-directory={state_directory(stopped)}")
    there = things(stopped)
    before = whole_state(stopped)
    done = stopped.run_to_end(*flags, "--dry-run")
    assert 0 == done.returncode, done.stderr.decode()
    assert before == whole_state(stopped)

    done_really = stopped.run_to_end(*flags)
    assert 0 == done_really.returncode, done_really.stderr.decode()
    listed = done.stdout.decode().splitlines()
    gone = there - things(stopped)
    # Built-in chains lose rules, and so are others by their text; they are not removed.
    built_in = {line for line in gone if re.search(r" chain [A-Z]+ with ", line)}
    assert sorted(gone - built_in) == sorted(listed)
    assert "nftables: table ip6 kube-proxy" in listed
    assert [] == [line for line in listed if "MY-CHAIN" in line or "theirs" in line]
    assert [] == [line for line in listed if "KUBE-FIREWALL" in line]

    again = stopped.run_to_end(*flags, "--dry-run")
    assert (0, b"nothing of ours was found\n") == (again.returncode, again.stdout)
