from __future__ import annotations

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sysctls, "ROOT", tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net/x").write_text("1\n")
    return tmp_path


@pytest.mark.parametrize(("text", "expected"), [("1\n", 1), ("-1", -1), ("", None), ("a b", None)])
def test_values_are_numbers(root, text, expected):
    (root / "net/x").write_text(text)
    assert sysctls.read("net/x") == expected


def test_an_absent_file_has_no_value():
    assert sysctls.read("net/absent") is None


def test_the_right_value_is_not_written_again(root):
    (root / "net/x").chmod(0o444)
    assert sysctls.ensure("net/x", 1) is False


def test_another_value_is_written(root):
    assert sysctls.ensure("net/x", 2) is True
    assert (root / "net/x").read_text() == "2\n"


def test_a_refusal_names_file_value_and_remedy(root):
    with pytest.raises(HostError, match=r"cannot write 1 to .*absent/y: No such file.*absent\.y=1"):
        sysctls.ensure("absent/y", 1)


def test_what_a_module_brings_is_missing_without_it():
    with pytest.raises(HostError, match=r"absent/y: No such file.*; load .*: modprobe ip_vs$"):
        sysctls.ensure("absent/y", 1, "ip_vs")


def test_a_refused_write_is_not_for_want_of_a_module(root):
    (root / "net/dir").mkdir()
    with pytest.raises(HostError, match=r"net/dir: Is a directory; run privileged"):
        sysctls.ensure("net/dir", 1, "ip_vs")
