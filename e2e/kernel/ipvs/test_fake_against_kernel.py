"""The fake kernel of ipvs mode does and refuses what a real kernel does and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from e2e.kernel.test_fake_against_tools import Real, by_table, line_named
from e2e.lab import Lab
from pykubeproxy.host.exec import Finished
from pykubeproxy.host.netlink import GENERIC, NETFILTER, ROUTE, Netlink
from pykubeproxy.ipvs import messages as m
from pykubeproxy.ipvs.node import delete_device, ensure_device, find_device
from pykubeproxy.ipvs.objects import PERSISTENT, Virtual, VirtualConfig
from pykubeproxy.ipvs.objects import Real as RealServer
from pykubeproxy.model.kinds import Family, Protocol
from tests.fakes.ipvs import FakeKernel
from tests.fakes.ipvs_cases import CASES, RULE_CASES, RULE_SETS, Case, Channels, picture, run
from tests.fakes.xtables_cases import BASE, spelled
from tests.fakes.xtables_cases import Case as RuleCase

IPVS_FLUSH = bytes((17, 1, 0, 0))
IPSET_DESTROY_ALL = (0x603, 0, bytes.fromhex("000000000500010006000000"))
DEFAULT_TIMEOUTS = m.Timeouts(900, 120, 300)


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """One for all tests, emptied for each: making one costs seven programs."""
    namespace = Namespace()
    try:
        namespace.run("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture(scope="module")
def connect(namespace: Namespace) -> Callable[[int], Netlink]:
    return lambda protocol: namespace.call(lambda: Netlink(protocol))


@pytest.fixture(scope="module")
def sockets(connect: Callable[[int], Netlink]) -> Iterator[list[Netlink]]:
    opened = [connect(number) for number in (GENERIC, NETFILTER, ROUTE)]
    yield opened
    for channel in opened:
        channel.close()


@pytest.fixture
def real(sockets: list[Netlink], connect: Callable[[int], Netlink]) -> Channels:
    generic, netfilter, route = sockets
    family_id = generic.family_id("IPVS")
    reset = [(family_id, 0, IPVS_FLUSH), m.set_config(family_id, DEFAULT_TIMEOUTS)]
    assert [0, 0] == generic.batch(reset)
    assert [0] == netfilter.batch([IPSET_DESTROY_ALL])
    delete_device(connect)
    ensure_device(connect)
    device = find_device(route)
    assert device is not None
    return Channels(generic, netfilter, route, family_id, device.index)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def fake(kernel: FakeKernel) -> Channels:
    generic = kernel.channel(GENERIC)
    return Channels(
        generic,
        kernel.channel(NETFILTER),
        kernel.channel(ROUTE),
        generic.family_id("IPVS"),
        index=2,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fake_agrees_with_the_kernel(fake: Channels, real: Channels, case: Case) -> None:
    assert [] == run(case, real)
    assert [] == run(case, fake)
    assert picture(real) == picture(fake)


def test_the_fake_prints_what_ipvsadm_prints(
    kernel: FakeKernel, fake: Channels, real: Channels, namespace: Namespace
) -> None:
    configs = [
        VirtualConfig("rr"),
        VirtualConfig("wlc", PERSISTENT, 10800),
        VirtualConfig("mh", m.SCHED_2),
        VirtualConfig("sh", m.SCHED_1 | m.SCHED_2 | PERSISTENT, 60),
    ]
    for at in (fake, real):
        for number, config in enumerate(configs):
            for protocol, address, host in (
                (Protocol.TCP, "10.96.0.1", "10.244.0.11"),
                (Protocol.UDP, "fd00:96::1", "fd00:244::11"),
            ):
                virtual = Virtual(protocol, address, 80 + number)
                refusals = at.generic.refusals(
                    [
                        m.new_service(at.family_id, virtual, config),
                        m.new_dest(at.family_id, RealServer(virtual, host, 8080), 1),
                    ]
                )
                assert not refusals
    printed = namespace.run("ipvsadm", "-Ln")
    expected = sorted(line.rstrip() for line in printed.splitlines())
    assert expected == sorted(kernel.listing().splitlines())


@pytest.mark.parametrize("kind", ["hash:ip,port", "bitmap:port"])
def test_revisions_are_those_of_the_kernel(fake: Channels, real: Channels, kind: str) -> None:
    request = m.get_type(kind, Family.IPV4)
    expected = m.decode_type(real.netfilter.request(*request))
    assert expected == m.decode_type(fake.netfilter.request(*request))


# --- rules -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(serve=()) as lab:
        for suffix, family in (("", "inet"), ("6", "inet6")):
            for name, kind in RULE_SETS.items():
                more = ("range", "0-65535") if kind == "bitmap:port" else ("family", family)
                lab.run("node", "ipset", "create", name + suffix, kind, *more)
        yield lab


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: case.name)
def test_the_fake_agrees_with_the_tools(
    lab: Lab, kernel: FakeKernel, fake: Channels, case: RuleCase, version: int
) -> None:
    real = Real(lab, "legacy", version)
    real.clear()
    requests = [
        m.create_set(name + suffix, kind, family)
        for suffix, family in (("", Family.IPV4), ("6", Family.IPV6))
        for name, kind in RULE_SETS.items()
    ]
    assert not fake.netfilter.refusals(requests)
    tools = kernel.xtables(version)
    stem = "iptables" if version == 4 else "ip6tables"
    status, said, done = 0, "", Finished(0, b"", b"")
    for step in (BASE, *case.steps):
        assert status == 0, said
        status, said = real.run(step)
        if isinstance(step, str):
            result = tools.run([f"{stem}-restore", "--noflush"], spelled(step, version).encode())
        else:
            result = tools.run([stem, *(spelled(word, version) for word in step)])
        assert isinstance(result, Finished)
        done = result
    assert case.refused == (status != 0), said
    assert (status, line_named(said)) == (done.exit_status, line_named(done.complaint)), (
        f"tool: {said}\nfake: {done.complaint}"
    )
    saved = tools.run([f"{stem}-save"])
    assert isinstance(saved, Finished)
    assert real.saved() == by_table(saved.stdout.decode())
