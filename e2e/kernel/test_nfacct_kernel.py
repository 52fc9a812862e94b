"""Named counters on a real kernel, fed by a real rule."""

from __future__ import annotations

import subprocess

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from pykubeproxy.host.nfacct import ensure_counter, read_counter

NAME = "pykubeproxy_test_counter"


@pytest.fixture
def namespace():
    namespace = Namespace()
    if not namespace.call(ensure_counter, NAME):
        namespace.remove()
        pytest.skip("this kernel has no nfacct")
    yield namespace
    namespace.remove()


def test_a_new_counter_is_zero(namespace):
    assert namespace.call(read_counter, NAME) == 0


def test_making_it_again_is_fine(namespace):
    assert namespace.call(ensure_counter, NAME) is True


def test_an_absent_counter_reads_as_none(namespace):
    assert namespace.call(read_counter, "no_such_counter") is None


def test_the_longest_name_is_accepted(namespace):
    assert namespace.call(ensure_counter, "x" * 31) is True
    assert namespace.call(read_counter, "x" * 31) == 0


def test_a_rule_feeds_the_counter(namespace):
    rule = ["OUTPUT", "-p", "udp", "-m", "nfacct", "--nfacct-name", NAME, "-j", "DROP"]
    try:
        namespace.run("iptables", "-A", *rule)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no nfacct match: {error.stderr}")
    namespace.run("ip", "link", "set", "lo", "up")
    namespace.run("sh", "-c", "echo x | timeout 1 bash -c 'cat >/dev/udp/127.0.0.1/9' || true")
    assert namespace.call(read_counter, NAME) == 1
