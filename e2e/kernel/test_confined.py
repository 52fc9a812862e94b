"""A privileged moment, and after it a daemon that may do little and does all of its job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.confined import ConfinedDaemon, capabilities_of, container
from e2e.kernel.running import eventually
from e2e.kernel.test_daemon import POD, WEB, answered_by, flush, web
from e2e.lab import REFUSED, Answer, Lab
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import endpoint, port, service, slice_, slice_port

LOCALNET = "net/ipv4/conf/all/route_localnet"
ESTABLISHED = "net/netfilter/nf_conntrack_tcp_timeout_established"
CLOSE_WAIT = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
WEB6, POD6 = "fd00:96::10", "fd00:244::11"


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path) -> Iterator[ConfinedDaemon]:
    """Neither initialised nor started."""
    flags = ("--iptables-sync-period=1s", "--iptables-min-sync-period=50ms")
    daemon = ConfinedDaemon(lab, variant, tmp_path, *flags)
    yield daemon
    daemon.stop()


def with_node_port() -> tuple[Service, EndpointSlice]:
    entrance = [port(80, "http", node_port=30080)]
    _, slice_of_it = web("p1")
    return service("web", cluster_ip=WEB, type="NodePort", ports=entrance), slice_of_it


def over_ipv6() -> tuple[Service, EndpointSlice]:
    return (
        service("web6", cluster_ip=WEB6, ports=[port(80, "http")]),
        slice_(
            "web6",
            endpoint(Lab.address("p1", 6), node="node"),
            ports=[slice_port(8080, "http")],
            address_type="IPv6",
        ),
    )


def dns(*pods: str) -> tuple[Service, EndpointSlice]:
    return (
        service("dns", cluster_ip="10.96.0.53", ports=[port(53, "dns", "UDP")]),
        slice_(
            "dns",
            *(endpoint(POD[p], node="node") for p in pods),
            ports=[slice_port(8080, "dns", "UDP")],
        ),
    )


def test_it_does_its_full_job_with_the_rights_of_the_manifest(daemon: ConfinedDaemon) -> None:
    lab = daemon.lab
    daemon.initialise()
    daemon.write("web", *with_node_port())
    daemon.write("web6", *over_ipv6())
    daemon.write("dns", *dns("p1"))
    daemon.start()

    assert daemon.process is not None
    wanted = set(container()["securityContext"]["capabilities"]["add"])
    held = capabilities_of(daemon.process.pid)
    expected = {"CapPrm": wanted, "CapEff": wanted, "CapBnd": wanted, "CapInh": set()}
    assert {**expected, "CapAmb": set()} == held

    # Both families, and what needed a kernel parameter.
    eventually(lambda: answered_by(lab, WEB6) == "p1", "the second family")
    assert "p1" == answered_by(lab)
    assert isinstance(lab.probe("node", "127.0.0.1", 30080), Answer)
    assert isinstance(lab.probe("client", lab.address("node"), 30080), Answer)

    # Flows that a change makes stale.
    assert isinstance(lab.probe("client", "10.96.0.53", 53, "UDP"), Answer)
    daemon.write("dns", *dns())
    eventually(lambda: lab.probe("client", "10.96.0.53", 53, "UDP") is REFUSED, "no endpoints")
    daemon.write("dns", *dns("p2"))
    eventually(lambda: daemon.says("stale UDP flows removed"), "the old flow is gone")
    reply = lab.probe("client", "10.96.0.53", 53, "UDP")
    assert isinstance(reply, Answer)
    assert "p2" == reply.server

    # Somebody's flush.
    flush(daemon)
    eventually(lambda: answered_by(lab) == "p1", "served again")

    # Another start, which finds what this one noted.
    daemon.stop()
    assert list((daemon.manifests.parent / "state").glob("iptables-IPv4-*"))
    daemon.start()
    daemon.write("web", *web("p2"))
    eventually(lambda: answered_by(lab) == "p2", "a change after the second start")
    assert not daemon.says("WARN", "state not")
    daemon.stop()

    done = daemon.run_to_end("--cleanup", f"--state-directory={daemon.manifests.parent / 'state'}")
    assert 0 == done.returncode, done.stderr.decode()
    assert [] == [c for c in daemon.chains() if c.startswith(("KUBE-SVC", "KUBE-SERV"))]


def test_what_is_only_the_init_containers_to_set_is_named_all_at_once(
    lab: Lab, tmp_path: Path
) -> None:
    """A read-only /proc/sys without an init container before it: which values, and the remedy."""
    lab.run("node", "conntrack", "-L")  # the kernel makes the parameters with the first use
    lab.sysctl("node", {LOCALNET: "0", ESTABLISHED: "432000", CLOSE_WAIT: "60"})
    daemon = ConfinedDaemon(lab, "nft", tmp_path)
    done = daemon.run_to_end(*daemon.serving_flags())
    said = done.stderr.decode()
    assert 1 == done.returncode, said
    for name, found, wanted in (
        (ESTABLISHED, 432000, 86400),
        (CLOSE_WAIT, 60, 3600),
        (LOCALNET, 0, 1),
    ):
        path, short = f"/proc/sys/{name}", name.replace("/", ".")
        assert f"{path} is {found}, must be {wanted} (Read-only file system)" in said
        assert f"sysctl -w {short}={wanted}" in said
    assert "--init-only" in said
    assert "KUBE-SERVICES" not in daemon.chains(), "nothing was written"

    daemon.initialise()
    values = [lab.read_sysctl("node", name) for name in (ESTABLISHED, CLOSE_WAIT, LOCALNET)]
    assert ["86400", "3600", "1"] == values
    daemon.start()
    assert 0 == daemon.stop()


def test_a_restart_goes_on_with_timeouts_that_somebody_changed(
    lab: Lab, variant: str, tmp_path: Path
) -> None:
    """The kubelet starts an ended container anew without the init container before it."""
    daemon = ConfinedDaemon(lab, variant, tmp_path)
    daemon.initialise()
    daemon.write("web", *with_node_port())
    daemon.start()
    assert not daemon.says("connections are tracked with the values found")
    daemon.stop()

    lab.sysctl("node", {ESTABLISHED: "432000", CLOSE_WAIT: "60"})
    daemon.write("web", *web("p2"))
    daemon.start()
    words = [
        f"/proc/sys/{name} is {found}, must be {wanted} (Read-only file system)"
        for name, found, wanted in ((ESTABLISHED, 432000, 86400), (CLOSE_WAIT, 60, 3600))
    ]
    assert daemon.says("ERROR", "connections are tracked with the values found", *words)
    assert 1 == daemon.text().count("connections are tracked")
    assert "p2" == answered_by(lab)
    assert ["432000", "60"] == [lab.read_sysctl("node", name) for name in (ESTABLISHED, CLOSE_WAIT)]
    daemon.stop()

    # What the mode needs is another matter.
    lab.sysctl("node", {LOCALNET: "0"})
    done = daemon.run_to_end(*daemon.serving_flags())
    assert 1 == done.returncode
    assert f"/proc/sys/{LOCALNET} is 0, must be 1" in done.stderr.decode()


def test_initialising_writes_no_rule_and_asks_no_api(
    lab: Lab, variant: str, tmp_path: Path
) -> None:
    daemon = ConfinedDaemon(lab, variant, tmp_path, "--conntrack-udp-timeout=45s")
    before = {(t, f): daemon.saved(t, f) for t in ("nat", "filter", "mangle") for f in (4, 6)}
    said = daemon.initialise()
    after = {(t, f): daemon.saved(t, f) for t in ("nat", "filter", "mangle") for f in (4, 6)}
    assert before == after
    assert "initialised" in said
    assert "45" == lab.read_sysctl("node", "net/netfilter/nf_conntrack_udp_timeout")
    again = daemon.initialise()
    assert "kernel parameter set" not in again


@pytest.mark.parametrize(
    ("variant", "given", "missing"),
    [
        pytest.param("nft", (), "NET_ADMIN", id="nft without any"),
        pytest.param("legacy", ("NET_ADMIN",), "NET_RAW", id="legacy without a raw socket"),
    ],
)
def test_a_right_that_is_missing_is_named(
    lab: Lab, tmp_path: Path, variant: str, given: tuple[str, ...], missing: str
) -> None:
    daemon = ConfinedDaemon(lab, variant, tmp_path)
    daemon.capabilities = given
    done = daemon.run_to_end(*daemon.serving_flags())
    assert 1 == done.returncode
    assert missing in done.stderr.decode()


NET_ADMIN, BOTH = ("NET_ADMIN",), ("NET_ADMIN", "NET_RAW")


@pytest.mark.parametrize(
    ("chain", "given", "lock", "expected"),
    [
        pytest.param(
            *("KUBE-IPTABLES-HINT", NET_ADMIN, True),
            ("legacy tables exist on this node", "Permission denied", "NET_RAW"),
            id="hint, no raw socket",
        ),
        pytest.param(
            *("KUBE-IPTABLES-HINT", BOTH, False),
            ("hint chain is in the legacy tables", "Read-only file system", "/run/xtables.lock,"),
            id="hint, no lock",
        ),
        pytest.param(
            *("KUBE-PROXY-CANARY", BOTH, False),
            ("a service proxy are in the legacy", "Read-only file system", "/run/xtables.lock,"),
            id="earlier proxy, no lock",
        ),
    ],
)
def test_legacy_tables_that_are_in_use_and_out_of_reach_end_the_start(
    lab: Lab,
    tmp_path: Path,
    chain: str,
    given: tuple[str, ...],
    lock: bool,
    expected: tuple[str, ...],
) -> None:
    lab.run("node", "iptables-legacy", "-t", "mangle", "-N", chain)
    daemon = ConfinedDaemon(lab, "auto", tmp_path)
    daemon.capabilities, daemon.lock = given, lock
    done = daemon.run_to_end(*daemon.serving_flags())
    said = done.stderr.decode()
    assert 1 == done.returncode, said
    assert list(expected) == [words for words in expected if words in said], said
    assert b"KUBE-" not in lab.run("node", "iptables-nft-save").stdout, "nothing was written"


def test_without_a_raw_socket_nft_serves_where_the_kubelet_uses_it(
    lab: Lab, tmp_path: Path
) -> None:
    """A legacy table that somebody's look brought into being is no obstacle."""
    lab.run("node", "iptables-legacy-save", "-t", "nat")
    lab.run("node", "iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    daemon = ConfinedDaemon(lab, "auto", tmp_path)
    daemon.initialise()
    daemon.capabilities = NET_ADMIN
    daemon.write("web", *web("p1"))
    daemon.start()
    assert daemon.says("iptables variant", "variant=nft", "hint chain is in the nft tables")
    assert "p1" == answered_by(lab)
    assert 0 == daemon.stop()


def test_a_clean_up_that_may_not_lock_says_so_and_what_to_mount(lab: Lab, tmp_path: Path) -> None:
    daemon = ConfinedDaemon(lab, "legacy", tmp_path)
    daemon.initialise()
    daemon.start()
    daemon.stop()
    daemon.lock = False
    done = daemon.run_to_end("--cleanup", "--state-directory=")  # its notes stay for what follows
    said = done.stderr.decode() + done.stdout.decode()
    assert 1 == done.returncode, said
    assert "it takes the node's /run/xtables.lock, mounted writable" in said
    assert "nothing of ours was found" not in said
    assert "KUBE-SERVICES" in daemon.chains()

    # As docs/operations.md has it for a container that has the node's files elsewhere.
    environment = {"XTABLES_LOCKFILE": str(tmp_path / "state" / "xtables.lock")}
    elsewhere = ConfinedDaemon(lab, "legacy", tmp_path, environment=environment)
    elsewhere.lock = False
    done = elsewhere.run_to_end("--cleanup", f"--state-directory={tmp_path / 'state'}")
    assert 0 == done.returncode, done.stderr.decode()
    assert "KUBE-SERVICES" not in elsewhere.chains()
    assert [] == list((tmp_path / "state").glob("iptables-*"))
