"""What stays of a decision: sums that move with it, and health checks that follow the kernel."""

from __future__ import annotations

import pytest

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.routes import ServiceRoutes
from pykubeproxy.sync.summary import HealthChecks, Summary

WEB, DNS = ServiceKey("default", "web"), ServiceKey("default", "dns")


def test_a_sum_moves_by_what_one_of_it_was_and_is():
    before = Summary(31000, 2, endpoint_count=10, no_local_internal=1, no_local_external=0)
    after = Summary(31000, 3, endpoint_count=4, no_local_internal=0, no_local_external=2)
    total = Summary().moved(Summary(), before).moved(before, after)
    assert Summary(0, 0, 4, 0, 2) == total
    assert Summary() == total.moved(after, Summary())


@pytest.mark.parametrize(
    ("port", "ready", "expected"),
    [(31000, 2, (31000, 2)), (31000, 0, (31000, 0)), (0, 2, None)],
)
def test_a_health_check_is_there_with_its_port(port, ready, expected):
    routes = ServiceRoutes(health_check_port=port, local_ready=ready)
    assert expected == Summary.of(routes, counts_services=False).health_check


def checks(served=None):
    made = HealthChecks()
    if served is not None:
        made.decided(WEB, served)
        made.settle(held=())
        made.take()
    return made


@pytest.mark.parametrize(
    ("served", "decided", "held", "expected"),
    [
        pytest.param(None, (31000, 1), False, {WEB: (31000, 1)}, id="new"),
        pytest.param((31000, 1), (31000, 2), False, {WEB: (31000, 2)}, id="another count"),
        pytest.param((31000, 1), (31001, 1), False, {WEB: (31001, 1)}, id="another port"),
        pytest.param((31000, 1), None, False, {WEB: None}, id="none any more"),
        pytest.param((31000, 1), (31000, 1), False, {}, id="the same again"),
        pytest.param(None, None, False, {}, id="come and gone"),
        pytest.param(None, (31000, 1), True, {}, id="held: new"),
        pytest.param((31000, 1), (31000, 2), True, {}, id="held: another count"),
        pytest.param((31000, 1), (31001, 0), True, {WEB: (31000, 0)}, id="held: nobody here"),
        pytest.param((31000, 1), None, True, {WEB: (31000, 0)}, id="held: none any more"),
        pytest.param((31000, 0), None, True, {}, id="held: nobody here before"),
    ],
)
def test_what_was_decided_is_served_once_the_kernel_has_it(served, decided, held, expected):
    made = checks(served)
    made.decided(WEB, decided)
    assert {} == made.take()
    made.settle(held={WEB} if held else ())
    assert expected == made.take()
    assert {} == made.take()


def test_who_was_held_is_served_when_that_is_over():
    made = checks((31000, 1))
    made.decided(WEB, (31000, 2))
    made.decided(DNS, (31001, 1))
    made.settle(held={WEB})
    assert {WEB: (31000, 1), DNS: (31001, 1)} == made.served
    made.settle(held=())
    assert {WEB: (31000, 2), DNS: (31001, 1)} == made.served
    assert {WEB: (31000, 2), DNS: (31001, 1)} == made.take()
