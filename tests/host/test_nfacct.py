from __future__ import annotations

import errno
import os
import struct

import pytest

from pykubeproxy.host import nfacct
from pykubeproxy.host.netlink import attribute
from pykubeproxy.iptables.compile import INVALID_COUNTER, LOCALHOST_COUNTER


class Kernel:
    """Stands in for Netlink and the kernel's table of counters behind it."""

    def __init__(self, counters=(), refuse=None):
        self.counters = dict(counters)
        self.refuse = refuse

    def __call__(self, _protocol):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def request(self, kind, _flags, body):
        name = body[8:].split(b"\0")[0].decode()
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        if kind == 0x700:
            self.counters[name] = 0
            return b""
        if name not in self.counters:
            raise FileNotFoundError(errno.ENOENT, "absent")
        packets = struct.pack(">Q", self.counters[name])
        return bytes(4) + attribute(1, name.encode() + b"\0") + attribute(2, packets)


@pytest.fixture
def kernel(monkeypatch):
    def install(**kwargs):
        kernel = Kernel(**kwargs)
        monkeypatch.setattr(nfacct, "Netlink", kernel)
        return kernel

    return install


def test_a_missing_counter_is_made(kernel):
    table = kernel()
    assert nfacct.ensure_counter("a") is True
    assert table.counters == {"a": 0}


def test_an_existing_counter_keeps_its_count(kernel):
    kernel(counters={"a": 7})
    assert nfacct.ensure_counter("a") is True
    assert nfacct.read_counter("a") == 7


def test_an_absent_counter_reads_as_none(kernel):
    kernel()
    assert nfacct.read_counter("a") is None


@pytest.mark.parametrize("refuse", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_a_kernel_without_counters_is_no_error(kernel, refuse):
    kernel(refuse=refuse)
    assert (nfacct.ensure_counter("a"), nfacct.read_counter("a")) == (False, None)


def test_a_name_too_long_for_the_kernel_is_a_bug():
    with pytest.raises(ValueError, match="longer than 31 bytes"):
        nfacct.ensure_counter("x" * 32)


@pytest.mark.parametrize("name", [INVALID_COUNTER, LOCALHOST_COUNTER])
def test_our_names_fit(kernel, name):
    kernel()
    assert nfacct.ensure_counter(name)
