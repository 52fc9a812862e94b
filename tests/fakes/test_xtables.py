"""The fake of the iptables tools; e2e/kernel holds it to the real ones with the same table."""

from __future__ import annotations

import shlex

import pytest

from pykubeproxy.host.exec import Finished, Killed, NotStarted, TimedOut
from tests.fakes.xtables import Fault, Xtables
from tests.fakes.xtables_cases import BASE, CASES, NFACCT, Case, spelled

RESTORE = ("iptables-restore", "--noflush", "-w", "5")
PUT = b"*nat\n:ONE - [0:0]\n-A ONE -s 10.0.0.5 -j RETURN\nCOMMIT\n"


def run(fake: Xtables, step: str | tuple[str, ...]) -> Finished:
    stem = "iptables" if fake.version == 4 else "ip6tables"
    if isinstance(step, str):
        argv = [f"{stem}-restore", "--noflush", "-w", "5"]
        done = fake.run(argv, spelled(step, fake.version).encode())
    else:
        argv = [stem, "-w", "5", *(spelled(word, fake.version) for word in step)]
        done = fake.run(argv)
    assert isinstance(done, Finished)
    return done


@pytest.mark.parametrize("nft", [True, False], ids=["nft", "legacy"])
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fake_accepts_and_refuses(case: Case, version: int, nft: bool) -> None:
    fake = Xtables(version, nft=nft, nfacct=[NFACCT])
    for step in (BASE, *case.steps[:-1]):
        assert run(fake, step).exit_status == 0
    done = run(fake, case.steps[-1])
    assert case.refused == (done.exit_status != 0), done.complaint
    assert bool(done.complaint) == case.refused


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.refused and isinstance(c.steps[-1], str)], ids=lambda c: c.name
)
def test_a_refused_table_is_left_as_it_was(case: Case) -> None:
    fake = Xtables(4, nfacct=[NFACCT])
    for step in (BASE, *case.steps[:-1]):
        run(fake, step)
    before = fake.state()
    run(fake, case.steps[-1])
    if case.name != "tables before a refused one stay committed":
        assert before == {name: table for name, table in fake.state().items() if name in before}
    else:
        assert before != fake.state()


@pytest.mark.parametrize("case", [c for c in CASES if not c.refused], ids=lambda c: c.name)
def test_what_is_saved_can_be_restored(case: Case) -> None:
    fake = Xtables(4, nfacct=[NFACCT])
    for step in (BASE, *case.steps):
        run(fake, step)
    saved = fake.run(["iptables-save"])
    assert isinstance(saved, Finished)
    other = Xtables(4, nfacct=[NFACCT])
    done = other.run(["iptables-restore"], saved.stdout)
    assert isinstance(done, Finished)
    assert done == Finished(0, b"", b"")
    assert fake.state() == other.state()


def test_a_refusal_names_the_line() -> None:
    text = b"*nat\n:ONE - [0:0]\n-A ONE -s 10.0.0.300 -j RETURN\nCOMMIT\n"
    for nft in (True, False):
        done = Xtables(4, nft=nft).run(RESTORE, text)
        assert isinstance(done, Finished)
        assert b"line: 3" in done.stderr


def test_a_full_restore_forgets_what_it_does_not_name() -> None:
    fake = Xtables()
    fake.run(RESTORE, PUT)
    fake.run(["iptables-restore"], b"*nat\n:OTHER - [0:0]\nCOMMIT\n")
    assert "ONE" not in fake.table("nat").chains
    assert "OTHER" in fake.table("nat").chains


def test_a_missing_family_is_a_missing_program() -> None:
    assert isinstance(Xtables(4).run(["ip6tables-save"]), NotStarted)


@pytest.mark.parametrize(
    ("fault", "kind", "landed"),
    [
        pytest.param(Fault.REFUSE, Finished, False, id="refused"),
        pytest.param(Fault.LOCKED, Finished, False, id="locked"),
        pytest.param(Fault.DIE_BEFORE, Killed, False, id="killed before"),
        pytest.param(Fault.DIE_AFTER, Killed, True, id="killed after"),
        pytest.param(Fault.TIME_OUT_BEFORE, TimedOut, False, id="hangs before"),
        pytest.param(Fault.TIME_OUT_AFTER, TimedOut, True, id="hangs after"),
        pytest.param(Fault.MISSING, NotStarted, False, id="missing"),
    ],
)
def test_faults_happen_once_and_only_where_they_match(
    fault: Fault, kind: type, landed: bool
) -> None:
    fake = Xtables()
    fake.fail(fault, "10.0.0.5")
    assert fake.run(RESTORE, b"*nat\n:OTHER - [0:0]\nCOMMIT\n") == Finished(0, b"", b"")
    done = fake.run(RESTORE, PUT)
    assert isinstance(done, kind)
    assert not isinstance(done, Finished) or done.exit_status != 0
    assert landed == ("ONE" in fake.table("nat").chains)
    assert fake.run(RESTORE, PUT) == Finished(0, b"", b"")


def test_work_is_counted() -> None:
    fake = Xtables()
    fake.run(RESTORE, PUT)
    fake.run(["iptables-save"])
    fake.run(["iptables", "-w", "5", "-t", "nat", "-S"])
    expected = {"iptables-restore": 1, "iptables-save": 1, "iptables": 1}
    assert expected == dict(fake.calls)
    assert (4, len(PUT)) == (fake.lines, fake.bytes)


def test_words_with_blanks_survive_as_arguments() -> None:
    fake = Xtables()
    fake.run(
        RESTORE, b'*nat\n:ONE - [0:0]\n-A ONE -m comment --comment "a b/c" -j RETURN\nCOMMIT\n'
    )
    argv = shlex.split('iptables -t nat -C ONE -m comment --comment "a b/c" -j RETURN')
    assert fake.run(argv) == Finished(0, b"", b"")


def test_a_planned_refusal_names_the_line_it_was_waiting_for() -> None:
    fake = Xtables()
    fake.fail(Fault.REFUSE, "10.0.0.5", times=None)
    done = fake.run(RESTORE, PUT)
    assert isinstance(done, Finished)
    assert b"line 3 failed" in done.stderr
    fake.heal()
    assert fake.run(RESTORE, PUT) == Finished(0, b"", b"")
