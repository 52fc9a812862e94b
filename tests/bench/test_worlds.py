"""The worlds that figures are taken in."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

import pytest

from bench.worlds import NODE_PORTS, SLICE_ENDPOINTS, World, cluster_ip

SERVICES = ip_network("10.96.0.0/12")


def _addresses(world, index):
    return [e.addresses[0] for part in world.slices(index) for e in part.endpoints]


def test_cluster_ips_are_different_and_in_the_range():
    found = {cluster_ip(n) for n in range(30_000)}
    assert 30_000 == len(found)
    assert all(ip_address(address) in SERVICES for address in found)


def test_cluster_ips_leave_the_static_part_of_the_range_alone():
    assert all(not cluster_ip(n).startswith("10.96.0.") for n in range(30_000))


def test_cluster_ips_look_drawn():
    """As many /24 are hit as by drawing, where counting up would hit 40 and a grid all 4096."""
    assert 3650 < len({cluster_ip(n).rpartition(".")[0] for n in range(10_000)}) < 3830


def test_an_ipv6_cluster_ip_goes_with_each_ipv4_one():
    world = World(10, 1, dual_stack=True)
    assert (cluster_ip(3), cluster_ip(3, 6)) == world.service(3).spec.cluster_ips
    assert ["IPv4", "IPv6"] == [part.address_type for part in world.slices(3)]
    assert ip_address(cluster_ip(3, 6)) in ip_network("fd00:96::/108")


def test_pods_are_different_and_fit_on_their_nodes():
    world = World(500, 5)
    pods = [address for n in range(500) for address in _addresses(world, n)]
    on_node = Counter(address.rpartition(".")[0] for address in pods)
    assert 2500 == len(set(pods))
    assert max(on_node.values()) <= 110


@pytest.mark.parametrize("world", [World(1, 300), World(500, 5)], ids=str)
def test_services_beyond_the_world_have_pods_of_their_own(world):
    numbers = range(world.services + 5)
    pods = [address for n in numbers for address in _addresses(world, n)]
    assert len(numbers) * world.endpoints == len(set(map(ip_address, pods)))


def test_pods_of_one_service_are_on_different_nodes():
    nodes = [e.node_name for part in World(500, 5).slices(7) for e in part.endpoints]
    assert 5 == len(set(nodes))


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param(5, [5], id="few"),
        pytest.param(100, [100], id="just one slice"),
        pytest.param(250, [100, 100, 50], id="several slices"),
        pytest.param(0, [0], id="none"),
    ],
)
def test_slices_are_cut_as_the_controller_cuts_them(endpoints, expected):
    world = World(3, endpoints)
    assert expected == [len(part.endpoints) for part in world.slices(1)]
    assert 100 == SLICE_ENDPOINTS


@pytest.mark.parametrize("endpoints", [1, 5, 250])
def test_a_change_replaces_one_pod_by_one_that_was_never_there(endpoints):
    world = World(20, endpoints)
    pods = {address for n in range(20) for address in _addresses(world, n)}
    before, after = world.slices(4)[-1], world.changed_slice(4, 1)
    assert before.key == after.key
    assert before.endpoints[:-1] == after.endpoints[:-1]
    assert (world.last_address(4, 1),) == after.endpoints[-1].addresses
    assert world.last_address(4, 1) not in pods
    assert world.last_address(4, 1) != world.last_address(4, 2)


def test_shares_are_kept_and_do_not_fall_on_the_same_services():
    world = World(2000, 1, node_ports=0.1, load_balancers=0.1, udp=0.1, empty=0.1)
    services = [world.service(n) for n in range(2000)]
    kinds = Counter(service.spec.type for service in services)
    assert {"ClusterIP": 1600, "NodePort": 200, "LoadBalancer": 200} == kinds
    assert 200 == sum(service.spec.ports[0].protocol == "UDP" for service in services)
    assert 200 == sum(not _addresses(world, n) for n in range(2000))
    assert 1600 == sum(world.answers(n) for n in range(2000))


def test_node_ports_end_where_their_numbers_do():
    world = World(10_000, 1, node_ports=1.0)
    numbers = [world.service(n).spec.ports[0].node_port for n in range(10_000)]
    assert list(NODE_PORTS["NodePort"]) == [n for n in numbers if n is not None]


def test_a_world_is_read_and_written_as_text():
    assert World(1000, 250) == World.parse("1000x250")
    assert "1000x250" == str(World(1000, 250))
    with pytest.raises(ValueError):
        World.parse("many")
