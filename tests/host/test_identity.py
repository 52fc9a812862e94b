"""What tells boots and network namespaces apart."""

from __future__ import annotations

from pykubeproxy.host import identity
from pykubeproxy.host.identity import namespace_identity


def test_the_same_place_has_the_same_identity():
    first = namespace_identity()
    assert first is not None
    assert first == namespace_identity()
    assert first[0] == identity.BOOT_ID.read_text().strip()


def test_without_cookies_it_is_the_inode(monkeypatch):
    monkeypatch.setattr(identity, "_SO_NETNS_COOKIE", 0x7FFF)
    found = namespace_identity()
    assert found is not None
    assert found[1].startswith("inode-")


def test_a_system_that_does_not_tell_its_boot_has_none(tmp_path):
    assert namespace_identity(tmp_path / "absent") is None
    (tmp_path / "empty").write_text("")
    assert namespace_identity(tmp_path / "empty") is None
