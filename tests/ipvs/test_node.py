from __future__ import annotations

import errno
import struct

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.host.exec import Finished, Killed, NotStarted, TimedOut
from pykubeproxy.host.netlink import attribute
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.node import (
    Problem,
    apply_timeouts,
    delete_device,
    ensure_device,
    explain,
    find_problems,
    parameters,
)
from pykubeproxy.model.kinds import Family
from tests.ipvs.scripted import (
    CREATE_SET,
    DEL_LINK,
    DEL_SERVICE,
    FAMILY_ID,
    GET_CONFIG,
    GET_LINK,
    GET_PROTOCOL,
    GET_SERVICE,
    GET_TYPE,
    NEW_LINK,
    NEW_SERVICE,
    NFGEN,
    SET_CONFIG,
    ScriptedKernel,
    in_turn,
    link,
    message,
    refuse,
    service,
    tcp,
)

V4, V6 = Family.IPV4, Family.IPV6
ONE = {V4: Tools(V4, Variant.NFT)}
BOTH = {family: Tools(family, Variant.NFT) for family in Family}
PROBE = {V4: tcp("198.51.100.0", 20000), V6: tcp("2001:db8::", 20000)}
DONE = Finished(0, b"", b"")
FIND_TYPE_FAILED = 4098


@pytest.fixture
def kernel():
    """One that can do ipvs mode, and lists the virtual server that was made last."""
    kernel = ScriptedKernel()

    def listed(body):
        changes = [(key, body) for key, body in kernel.asked if key in (NEW_SERVICE, DEL_SERVICE)]
        return [message(FAMILY_ID, body) for key, body in changes[-1:] if key == NEW_SERVICE]

    kernel.answers[GET_SERVICE] = listed
    return kernel


class Programs:
    """Runs modprobe and iptables-restore, and remembers them."""

    def __init__(self, *, unknown_match="", modprobe=DONE, first=()):
        """*first* are the results of the first tries to load rules."""
        self.first = list(first)
        self.unknown_match = unknown_match
        self.modprobe = modprobe
        self.loaded = []
        self.restored = []

    def __call__(self, argv, input, timeout_seconds):
        if argv[0] == "modprobe":
            assert argv[1] == "-va"
            self.loaded += argv[2:]
            return self.modprobe
        text = input.decode()
        self.restored.append(text)
        if self.first:
            return self.first.pop(0)
        if self.unknown_match and f"-m {self.unknown_match} " in text:
            return Finished(2, b"", f"Couldn't load match `{self.unknown_match}'".encode())
        return DONE


def find(kernel, tools=ONE, scheduler="", programs=None):
    return find_problems(scheduler, tools, programs or Programs(), kernel)


# --- can it run ---


@pytest.mark.parametrize("tools", [ONE, BOTH], ids=["one family", "both"])
def test_a_capable_node_has_no_problems_and_needs_no_module(kernel, tools):
    programs = Programs()
    assert [] == find(kernel, tools, programs=programs)
    assert [] == programs.loaded


def test_what_the_probe_makes_it_removes(kernel):
    programs = Programs()
    find(kernel, BOTH, programs=programs)
    assert 2 == kernel.times(NEW_SERVICE)
    assert 4 == kernel.times(DEL_SERVICE)  # before, what a killed probe left; and after
    assert 1 == kernel.times(NEW_LINK) == kernel.times(DEL_LINK)
    rules, removal = programs.restored[:2]
    assert "-A KUBE-IPVS-PROBE -m set --match-set KUBE-IPVS-PROBE dst -j RETURN" in rules
    assert "-X KUBE-IPVS-PROBE" in removal


def test_modules_are_loaded_once(kernel):
    kernel.family_errors = [errno.ENOENT]
    kernel.answers[GET_PROTOCOL] = in_turn(refuse(errno.EINVAL), kernel.answers[GET_PROTOCOL])
    kernel.answers[GET_TYPE] = in_turn(refuse(FIND_TYPE_FAILED), kernel.answers[GET_TYPE])
    kernel.answers[NEW_SERVICE] = in_turn(refuse(errno.ENOENT), lambda body: b"")
    kernel.answers[NEW_LINK] = in_turn(refuse(errno.EOPNOTSUPP), lambda body: b"")
    programs = Programs()
    assert [] == find(kernel, scheduler="wrr", programs=programs)
    assert ["ip_vs", "ip_vs_wrr", "ip_set", "ip_set_bitmap_port", "dummy"] == programs.loaded


def test_no_ipvs(kernel):
    kernel.family_errors = [errno.ENOENT] * 2
    programs = Programs(modprobe=NotStarted("modprobe: No such file or directory"))
    assert [Problem("the kernel has no IPVS", ("ip_vs", "ip_vs_rr", "nf_conntrack"))] == find(
        kernel, programs=programs
    )
    assert ["ip_vs"] == programs.loaded


def test_missing_rights_load_no_module(kernel):
    kernel.answers[GET_SERVICE] = refuse(errno.EPERM)
    programs = Programs()
    (problem,) = find(kernel, programs=programs)
    assert "the kernel refuses to tell about IPVS (Operation not permitted)" == problem.what
    assert [] == programs.loaded


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            refuse(errno.ENOENT),
            Problem("the kernel's IPVS has no scheduler xyz", ("ip_vs_xyz",)),
        ),
        (
            refuse(errno.EAFNOSUPPORT),
            Problem(
                "the kernel's IPVS refuses an IPv4 virtual server with scheduler xyz "
                "(Address family not supported by protocol)",
                ("ip_vs", "ip_vs_xyz"),
            ),
        ),
    ],
    ids=["unknown", "refused"],
)
def test_a_scheduler_that_cannot_be_used(kernel, answer, expected):
    kernel.answers[NEW_SERVICE] = answer
    assert [expected] == find(kernel, scheduler="xyz")


def test_a_server_that_is_accepted_must_be_listed(kernel):
    kernel.answers[GET_SERVICE] = lambda body: []
    (problem,) = find(kernel)
    assert problem.what.endswith("(it is accepted but not listed)")
    assert kernel.times(DEL_SERVICE)


def test_a_scheduler_in_use_is_not_tried(kernel):
    kernel.answers[GET_SERVICE] = lambda body: [service(tcp("192.0.2.1", 80), "lc")]
    assert [] == find(kernel, scheduler="lc")
    assert 0 == kernel.times(NEW_SERVICE)


def test_another_family_using_the_scheduler_is_no_proof(kernel):
    kernel.answers[GET_SERVICE] = lambda body: [
        service(tcp("192.0.2.1", 80), "lc"),
        service(PROBE[V6]),
    ]
    assert [] == find(kernel, BOTH, scheduler="lc")
    assert 1 == kernel.times(NEW_SERVICE)


def test_no_ipset_needs_no_trial_of_matches(kernel):
    kernel.answers[GET_PROTOCOL] = refuse(errno.EINVAL)
    programs = Programs()
    (problem,) = find(kernel, programs=programs)
    assert "the kernel has no ipset (Invalid argument)" == problem.what
    assert {"ip_set", "ip_set_hash_ipportnet", "ip_set_bitmap_port"} < set(problem.modules)
    assert [] == programs.restored


def test_ipset_of_another_age(kernel):
    kernel.answers[GET_PROTOCOL] = lambda body: NFGEN + attribute(1, b"\x05")
    assert [Problem("the kernel's ipset speaks protocols 5 to 5, and 6 is needed")] == find(kernel)


def test_a_missing_set_type_names_its_module(kernel):
    def answer(body):
        if b"hash:ip,port,net\0" in body:
            raise OSError(FIND_TYPE_FAILED, "Unknown error 4098")
        return NFGEN + attribute(4, b"\x09") + attribute(10, b"\x00")

    kernel.answers[GET_TYPE] = answer
    assert [
        Problem(
            "the kernel has no sets of type hash:ip,port,net "
            "(the kernel has no such set type, or not in this revision)",
            ("ip_set_hash_ipportnet",),
        )
    ] == find(kernel)


def test_a_set_type_that_is_too_old(kernel):
    kernel.answers[GET_TYPE] = lambda body: NFGEN + attribute(4, b"\x01") + attribute(10, b"\x00")
    problems = find(kernel)
    assert "the kernel knows revisions 0 to 1 of ipset type bitmap:port, and 3 is needed" in [
        problem.what for problem in problems
    ]


@pytest.mark.parametrize("match", ["set", "ipvs", "physdev"])
def test_a_missing_match_is_named(kernel, match):
    programs = Programs(unknown_match=match)
    (problem,) = find(kernel, programs=programs)
    assert problem.what.startswith(f"iptables-nft-restore has no match {match} (")
    assert f"Couldn't load match `{match}'" in problem.what
    assert (f"xt_{match}",) == problem.modules
    assert "-X KUBE-IPVS-PROBE" in programs.restored[-1]


LOCKED = Finished(4, b"", b"Another app is currently holding the xtables lock.")


def test_the_xtables_lock_is_waited_for(kernel):
    assert [] == find(kernel, programs=Programs(first=[LOCKED, LOCKED]))


@pytest.mark.parametrize(
    ("results", "said"),
    [
        pytest.param([LOCKED] * 30, "another program holds the xtables lock", id="locked"),
        pytest.param([Killed(9, b"")], "killed by signal 9", id="killed"),
        pytest.param([TimedOut(60.0, b"")], "killed after 60 s", id="hangs"),
    ],
)
def test_a_tool_that_gives_no_answer_does_not_decide_about_the_mode(kernel, results, said):
    with pytest.raises(HostError, match=said):
        find(kernel, programs=Programs(first=results))


def test_a_set_that_cannot_be_made(kernel):
    kernel.answers[CREATE_SET] = refuse(4099)
    assert [Problem("the kernel makes no set (the kernel holds as many sets as it can)")] == find(
        kernel
    )


def test_no_dummy_device(kernel):
    kernel.answers[NEW_LINK] = refuse(errno.EOPNOTSUPP)
    assert [
        Problem("the kernel makes no dummy device (Operation not supported)", ("dummy",))
    ] == find(kernel)


def test_a_dummy_device_that_is_there_is_proof_enough(kernel):
    kernel.answers[GET_LINK] = lambda body: link(7, "dummy")
    assert [] == find(kernel)
    assert 0 == kernel.times(NEW_LINK)


@pytest.mark.parametrize(
    ("fallback", "ending"),
    [
        (True, "running in iptables mode instead, until the next start"),
        (False, "ending, since --ipvs-fallback=fail; with =iptables it would run in iptables mode"),
    ],
)
def test_one_sentence_says_what_to_do_and_what_happens(fallback, ending):
    problems = [Problem("no IPVS", ("ip_vs", "nf_conntrack")), Problem("no dummy", ("dummy",))]
    assert (
        "this node cannot run ipvs mode: no IPVS; no dummy; "
        f"load on the node: modprobe -a ip_vs nf_conntrack dummy; {ending}"
    ) == explain(problems, fallback)


def test_what_no_module_brings_is_not_to_be_loaded():
    assert "modprobe" not in explain([Problem("too old")], fallback=True)


# --- what must be set ---


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sysctls, "ROOT", tmp_path)
    for name, value in BEFORE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return tmp_path


BEFORE = {
    "net/ipv4/vs/conntrack": 0,
    "net/ipv4/vs/conn_reuse_mode": 1,
    "net/ipv4/vs/expire_nodest_conn": 0,
    "net/ipv4/vs/expire_quiescent_template": 0,
    "net/ipv4/ip_forward": 0,
    "net/ipv4/conf/all/arp_ignore": 0,
    "net/ipv4/conf/all/arp_announce": 0,
}
ALWAYS = {
    "net/ipv4/vs/conntrack": 1,
    "net/ipv4/vs/expire_nodest_conn": 1,
    "net/ipv4/vs/expire_quiescent_template": 1,
    "net/ipv4/ip_forward": 1,
}
ARP = {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}
REUSE = {"net/ipv4/vs/conn_reuse_mode": 0}


@pytest.mark.parametrize(
    ("strict_arp", "release", "changes"),
    [
        pytest.param(False, "6.1.0-18-amd64", ALWAYS, id="new kernel"),
        pytest.param(True, "6.1.0", ALWAYS | ARP, id="strict ARP"),
        pytest.param(False, "5.9.0", ALWAYS, id="first that needs nothing"),
        pytest.param(False, "5.8.18", ALWAYS | REUSE, id="last that needs it"),
        pytest.param(False, "4.1", ALWAYS | REUSE, id="first that can"),
        pytest.param(False, "4.0.9", ALWAYS, id="too old"),
        pytest.param(False, "unknown", ALWAYS, id="no number"),
    ],
)
def test_kernel_parameters(root, strict_arp, release, changes):
    sysctls.ensure(parameters(strict_arp, release))
    assert BEFORE | changes == {name: sysctls.read(name) for name in BEFORE}


def test_what_a_module_brings_names_it(root):
    """So that a node without it is told what to load."""
    modules = {parameter.name: parameter.module for parameter in parameters(True, "5.4.0")}
    assert {name: "ip_vs" if "/vs/" in name else "" for name in modules} == modules


def timeouts(*seconds):
    numbers = zip((4, 5, 6), seconds, strict=True)
    return b"".join(attribute(kind, struct.pack("=I", number)) for kind, number in numbers)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        pytest.param((0, 0, 0), None, id="nothing asked"),
        pytest.param((900, 0, 300), None, id="the same"),
        pytest.param((0, 30, 0), (900, 30, 300), id="one of them"),
        pytest.param((0.5, 30.0, 1.2), (1, 30, 2), id="whole seconds, never 0"),
    ],
)
def test_timeouts_are_set_only_if_they_differ(kernel, wanted, sent):
    kernel.answers[GET_CONFIG] = lambda body: bytes(4) + timeouts(900, 120, 300)
    assert (sent is not None) == apply_timeouts(*wanted, kernel)
    expected = [] if sent is None else [timeouts(*sent)]
    assert expected == [body[4:] for body in kernel.bodies(SET_CONFIG)]


def test_timeouts_that_are_refused_stop_nothing(kernel):
    kernel.answers[GET_CONFIG] = refuse(errno.EPERM)
    assert not apply_timeouts(1, 2, 3, kernel)


# --- the device ---


def test_the_device_is_made_if_missing(kernel):
    assert ensure_device(kernel)
    (body,) = kernel.bodies(NEW_LINK)
    assert b"kube-ipvs0\0" in body
    assert b"dummy\0" in body
    kernel.answers[GET_LINK] = lambda body: link(7, "dummy")
    assert not ensure_device(kernel)
    assert 1 == kernel.times(NEW_LINK)


def test_the_device_is_deleted_if_there(kernel):
    assert not delete_device(kernel)
    kernel.answers[GET_LINK] = lambda body: link(7, "dummy")
    assert delete_device(kernel)
    assert 1 == kernel.times(DEL_LINK)


@pytest.mark.parametrize("function", [ensure_device, delete_device])
@pytest.mark.parametrize(("kind", "said"), [("veth", "veth"), ("", "unknown")])
def test_a_device_of_somebody_else_is_left_alone(kernel, function, kind, said):
    kernel.answers[GET_LINK] = lambda body: link(7, kind)
    with pytest.raises(HostError, match=f"device kube-ipvs0 is of type {said} where a dummy"):
        function(kernel)
    assert 0 == kernel.times(NEW_LINK) + kernel.times(DEL_LINK)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (ensure_device, "creating device kube-ipvs0: "),
        (delete_device, "deleting device kube-ipvs0: "),
    ],
)
def test_a_refusal_is_a_host_error(kernel, function, text):
    kernel.answers[GET_LINK] = refuse(errno.EPERM)
    with pytest.raises(HostError, match=f"^{text}Operation not permitted"):
        function(kernel)
