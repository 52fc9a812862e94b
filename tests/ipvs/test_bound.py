"""Addresses on the dummy device, on a kernel byte by byte."""

from __future__ import annotations

import errno

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.outcome import Applied, Partly, Unknown
from tests.fakes.ipvs import DEVICE, ROUTE, FakeKernel
from tests.ipvs.rig import A, B, Parts, bound, change, put, transaction

ONE, TWO = bound("10.96.0.1"), bound("10.96.0.2")
ONE6 = bound("fd00:96::1")
NOT_PERMITTED = "not permitted; run as root (NET_ADMIN)"


@pytest.fixture
def rig():
    return Parts()


def write(rig, puts=(), drops=(), owner=A):
    return rig.addresses.apply(transaction(change(owner, put(*puts), put(*drops))))


@pytest.mark.parametrize(("family", "key"), [(Family.IPV4, ONE), (Family.IPV6, ONE6)])
def test_addresses_come_and_go(family, key):
    rig = Parts(family)
    assert isinstance(write(rig, [key]), Applied)
    assert [key.address] == rig.kernel.bound()
    assert rig.addresses.observe().holds(key, put(key)[key])
    assert isinstance(write(rig, drops=[key]), Applied)
    assert [] == rig.kernel.bound()


def test_what_is_so_already_is_no_error(rig):
    write(rig, [ONE])
    assert isinstance(write(rig, [ONE]), Applied)
    write(rig, drops=[ONE])
    assert isinstance(write(rig, drops=[ONE]), Applied)


def test_many_addresses_are_counted(rig):
    outcome = write(rig, [ONE, TWO])
    assert isinstance(outcome, Applied)
    assert (2, 2) == (outcome.lines, outcome.rules)
    assert outcome.bytes > 0


def test_a_missing_device_is_made():
    rig = Parts(kernel=FakeKernel(device=False))
    assert isinstance(write(rig, [ONE]), Applied)
    assert ["10.96.0.1"] == rig.kernel.bound()


# --- refusals ---


def test_who_is_refused_keeps_nobody_else():
    rig = Parts(Family.IPV6)
    outcome = rig.addresses.apply(
        transaction(change(A, put(bound("ff02::1"))), change(B, put(ONE6)))
    )
    assert isinstance(outcome, Partly)
    assert {A: "address ff02::1: Cannot assign requested address"} == outcome.refused
    assert [{}, put(ONE6)] == [c.put for c in outcome.landed.changes]
    assert ["fd00:96::1"] == rig.kernel.bound()


def test_without_permission_the_reason_says_what_to_do(rig):
    rig.kernel.refuse(errno.EPERM)
    outcome = write(rig, [ONE])
    assert isinstance(outcome, Partly)
    assert {A: f"address 10.96.0.1: {NOT_PERMITTED}"} == outcome.refused


def test_a_device_deleted_meanwhile_calls_for_a_read_back(rig):
    rig.kernel.refuse(errno.ENODEV)
    assert Unknown("the dummy device is gone, somebody deleted it") == write(rig, [ONE])


def test_what_is_gone_with_the_device_need_not_go(rig):
    write(rig, [ONE])
    rig.kernel.refuse(errno.ENODEV)
    assert isinstance(write(rig, drops=[ONE]), Applied)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(errno.ENOBUFS, "No buffer space available", id="answers lost"),
        pytest.param(errno.EPERM, NOT_PERMITTED, id="permission"),
    ],
)
def test_a_failing_socket_leaves_the_outcome_unknown(rig, error, reason):
    rig.kernel.break_socket(error)
    assert Unknown(f"binding addresses: {reason}") == write(rig, [ONE])


def test_a_device_that_cannot_be_made_leaves_the_outcome_unknown(rig):
    def fails():
        raise HostError("creating device kube-ipvs0: no dummy")

    addresses = BoundAddresses(Family.IPV4, rig.kernel.channel(ROUTE), fails)
    outcome = addresses.apply(transaction(change(A, put(ONE))))
    assert Unknown("binding addresses: creating device kube-ipvs0: no dummy") == outcome
    with pytest.raises(HostError, match="no dummy"):
        addresses.observe()


# --- reading back ---


def test_only_addresses_of_the_device_count(rig):
    rig.kernel.links.add("eth0", addresses=["192.0.2.10/24", "10.96.0.9/32"])
    write(rig, [ONE, TWO])
    found = rig.addresses.observe()
    assert {TWO} == found.strays({ONE}).keys()
    assert not found.holds(bound("10.96.0.9"), put(ONE)[ONE])


@pytest.mark.parametrize(
    ("family", "address", "lengths"),
    [
        pytest.param(Family.IPV4, "10.96.0.9", [24], id="a net"),
        pytest.param(Family.IPV4, "10.96.0.9", [24, 32], id="a net and a single address"),
        pytest.param(Family.IPV6, "fd00:96::9", [64], id="a net of IPv6"),
    ],
)
def test_an_address_goes_whatever_its_prefix_length(family, address, lengths):
    rig = Parts(family)
    for length in lengths:
        rig.kernel.links.named(DEVICE).addresses[f"{address}/{length}"] = 0
    strays = rig.addresses.observe().strays(set())
    assert {bound(address)} == strays.keys()
    assert isinstance(write(rig, drops=strays), Applied)
    assert [] == rig.kernel.bound()


def test_an_address_of_any_scope_counts_but_a_link_local_one(rig):
    rig.kernel.links.named(DEVICE).addresses["10.96.0.9/32"] = 254
    assert {bound("10.96.0.9")} == rig.addresses.observe().strays(set()).keys()
    six = Parts(Family.IPV6)
    six.kernel.links.named(DEVICE).addresses["fe80::9/64"] = 253
    assert {} == six.addresses.observe().strays(set())
    assert six.addresses.look()()


@pytest.mark.parametrize(
    ("damage", "intact"),
    [
        pytest.param(lambda device: None, True, id="nothing"),
        pytest.param(lambda device: device.addresses.clear(), False, id="all gone"),
        pytest.param(
            lambda device: device.addresses.update({"10.96.0.9/32": 0}), False, id="one more"
        ),
    ],
)
def test_a_look_finds_what_others_did(rig, damage, intact):
    write(rig, [ONE, TWO])
    damage(rig.kernel.links.named(DEVICE))
    assert intact is rig.addresses.look()()


def test_a_look_at_a_device_made_anew_finds_nothing(rig):
    write(rig, [ONE])
    links = rig.kernel.links.links
    (index,) = (i for i, link in links.items() if link.name == DEVICE)
    links[index + 50] = links.pop(index)
    assert not rig.addresses.look()()


def test_what_is_written_during_a_look_does_not_count(rig):
    write(rig, [ONE])
    intact = rig.addresses.look()
    write(rig, [TWO], [ONE])
    assert intact()
    assert rig.addresses.look()()


def test_a_look_that_fails_tells_nothing(rig):
    write(rig, [ONE])
    intact = rig.addresses.look()
    rig.kernel.break_socket(errno.ENOBUFS)
    assert intact()


def test_only_addresses_of_the_family_count(rig):
    write(rig, [ONE])
    rig.kernel.links.named(DEVICE).addresses["fd00:96::1/128"] = 0
    assert {} == rig.addresses.observe().strays({ONE})


def test_link_local_addresses_are_the_kernels_own():
    rig = Parts(Family.IPV6)
    rig.kernel.links.named(DEVICE).addresses["fe80::1/64"] = 253
    assert {} == rig.addresses.observe().strays(set())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(PermissionError(errno.EPERM, "no"), "not permitted", id="permission"),
        pytest.param(TimeoutError("timed out"), "timed out", id="silence"),
    ],
)
def test_a_kernel_that_cannot_be_read_is_an_error(rig, monkeypatch, error, reason):
    def broken(*_):
        raise error

    monkeypatch.setattr(rig.kernel, "dump", broken)
    with pytest.raises(HostError, match=f"listing bound addresses: {reason}"):
        rig.addresses.observe()


# --- notices ---


def test_notices_of_our_own_doing_are_expected(rig, monkeypatch):
    """They may be read before the answer to the request."""
    heard = []
    do = rig.kernel.links.do

    def announced(kind, flags, body):
        done = do(kind, flags, body)
        if rig.kernel.links.modifies(kind):
            heard.append(rig.addresses.expects("10.96.0.1", "10.96.0.1" in rig.kernel.bound()))
        return done

    monkeypatch.setattr(rig.kernel.links, "do", announced)
    write(rig, [ONE])
    write(rig, drops=[ONE])
    assert [True, True] == heard


@pytest.mark.parametrize(
    ("address", "present", "expected"),
    [
        pytest.param("10.96.0.1", True, True, id="ours is there"),
        pytest.param("10.96.0.1", False, False, id="ours is gone"),
        pytest.param("10.96.0.9", True, False, id="a strange one is there"),
        pytest.param("10.96.0.9", False, True, id="a strange one is gone"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True], ids=["written", "found at a restart"])
def test_what_is_expected(rig, address, present, expected, restarted):
    write(rig, [ONE])
    if restarted:
        rig.restart()
        rig.addresses.observe()
    assert expected is rig.addresses.expects(address, present)


@pytest.mark.parametrize("put_first", [True, False], ids=["not bound", "not unbound"])
def test_what_is_refused_is_not_expected(rig, put_first):
    if not put_first:
        write(rig, [ONE])
    rig.kernel.refuse(errno.ENOMEM)
    write(rig, [ONE] if put_first else [], [] if put_first else [ONE])
    assert rig.addresses.expects("10.96.0.1", not put_first)
