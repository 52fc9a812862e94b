from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Action, Masquerade, Pool, Protocol
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Endpoint, PortKey, Verdict

WEB = ServiceKey("ns", "web")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(PortKey(WEB, "http", Protocol.TCP), "ns/web:http", id="named port"),
        pytest.param(PortKey(WEB, "", Protocol.TCP), "ns/web", id="unnamed port"),
        pytest.param(PortKey(WEB, "dns", Protocol.UDP), "ns/web:dns", id="no protocol in it"),
    ],
)
def test_a_port_prints_as_rule_comments_need_it(key, expected):
    assert expected == str(key)


def test_ports_that_differ_in_protocol_only_are_two():
    assert PortKey(WEB, "dns", Protocol.TCP) != PortKey(WEB, "dns", Protocol.UDP)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80")],
    ids=["IPv4", "IPv6 in brackets"],
)
def test_an_endpoint_prints_as_its_translation_target(address, expected):
    assert expected == str(Endpoint(address, 80, node_local=False))


def test_a_verdict_masquerades_nobody_unless_told():
    assert Verdict(Action.FORWARD) == Verdict(Action.FORWARD, Pool.CLUSTER, Masquerade.NEVER)
