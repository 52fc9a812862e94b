from __future__ import annotations

import errno

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.host.sysctls import Parameter

HASH = "/sys/module/nf_conntrack/parameters/hashsize"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sysctls, "ROOT", tmp_path)
    monkeypatch.setattr(sysctls, "SYS", tmp_path / "sys")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/x").write_text("1\n")
    buckets = tmp_path / "sys/module/nf_conntrack/parameters/hashsize"
    buckets.parent.mkdir(parents=True)
    buckets.write_text("100\n")
    return tmp_path


@pytest.mark.parametrize(("text", "expected"), [("1\n", 1), ("-1", -1), ("", None), ("a b", None)])
def test_values_are_numbers(root, text, expected):
    (root / "net/x").write_text(text)
    assert expected == sysctls.read("net/x")


def test_an_absent_file_has_no_value():
    assert sysctls.read("net/absent") is None


def written(monkeypatch):
    """What is written from now on, by the file's name."""
    found = []
    plain = type(sysctls.ROOT).write_text

    def write_text(path, text, **options):
        found.append((path.name, text))
        return plain(path, text, **options)

    monkeypatch.setattr(type(sysctls.ROOT), "write_text", write_text)
    return found


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        pytest.param(Parameter("net/x", 1), [], id="right already"),
        pytest.param(Parameter("net/x", 2), [("x", "2\n")], id="another value"),
        pytest.param(Parameter("net/x", 0, at_least=True), [], id="more than needed"),
        pytest.param(Parameter("net/x", 2, at_least=True), [("x", "2\n")], id="too little"),
        pytest.param(Parameter(HASH, 99, at_least=True), [], id="below /sys, enough"),
        pytest.param(Parameter(HASH, 101, at_least=True), [("hashsize", "101\n")], id="below /sys"),
    ],
)
def test_only_what_differs_is_written(monkeypatch, parameter, expected):
    writes = written(monkeypatch)
    assert [] == sysctls.apply([parameter])
    assert expected == writes


def test_parameters_are_set_in_order_and_one_refusal_stops_none(root, monkeypatch):
    writes = written(monkeypatch)
    wanted = [Parameter("net/x", 2), Parameter("absent/y", 1), Parameter(HASH, 200)]
    (refusal,) = sysctls.apply(wanted)
    assert wanted[1] == refusal.parameter
    assert ["x", "y", "hashsize"] == [name for name, _ in writes]
    assert "200\n" == (root / "sys/module/nf_conntrack/parameters/hashsize").read_text()


def test_a_missing_module_is_loaded_once(root):
    loaded = []

    def load(module):
        loaded.append(module)
        (root / "new").mkdir()
        for name in ("a", "b"):
            (root / "new" / name).write_text("0\n")

    wanted = [Parameter(f"new/{name}", 1, "nf_conntrack") for name in ("a", "b")]
    assert [] == sysctls.apply(wanted, load)
    assert ["nf_conntrack"] == loaded


def test_a_module_that_cannot_be_loaded_is_tried_once():
    loaded = []
    wanted = [Parameter(f"new/{name}", 1, "ip_vs") for name in ("a", "b")]
    assert 2 == len(sysctls.apply(wanted, loaded.append))
    assert ["ip_vs"] == loaded


def test_no_module_is_loaded_for_what_is_there():
    loaded = []
    sysctls.apply([Parameter("net/x", 2, "nf_conntrack")], loaded.append)
    assert [] == loaded


def test_all_refusals_are_one_error_that_tells_values_and_remedies(root):
    (root / "net/dir").mkdir()
    (root / "net/few").mkdir()
    with pytest.raises(HostError) as refused:
        sysctls.ensure(
            [
                Parameter("net/dir", 1),
                Parameter("net/x", 2),
                Parameter("net/few", 7, at_least=True),
                Parameter("absent/y", 1, "ip_vs"),
                Parameter("absent/z", 3, "ip_vs"),
            ]
        )
    said = str(refused.value)
    assert f"{root}/net/dir is not there, must be 1 (Is a directory)" in said
    assert f"{root}/net/few is not there, must be at least 7 (Is a directory)" in said
    assert f"{root}/absent/y is not there, must be 1 (No such file or directory)" in said
    assert "--init-only" in said
    commands = said.partition("run on the node: ")[2].split(" && ")
    assert [
        "modprobe ip_vs",
        "sysctl -w net.dir=1",
        "sysctl -w net.few=7",
        "sysctl -w absent.y=1",
        "sysctl -w absent.z=3",
    ] == commands
    assert "2\n" == (root / "net/x").read_text()


def test_the_value_that_is_there_is_told(root, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(type(root), "write_text", refuse)
    with pytest.raises(HostError, match=r"/x is 1, must be 2 \(Read-only file system\)"):
        sysctls.ensure([Parameter("net/x", 2)])


@pytest.mark.parametrize(
    ("number", "name", "is_tuning", "expected"),
    [
        pytest.param(errno.EROFS, "net/x", True, True, id="tuning in a read-only /proc/sys"),
        pytest.param(errno.EACCES, "net/x", True, True, id="tuning of another's file"),
        pytest.param(errno.EPERM, "net/x", True, True, id="tuning that takes a capability"),
        pytest.param(errno.EINVAL, "net/x", True, False, id="no such value"),
        pytest.param(errno.ENOENT, "net/absent", True, False, id="not there"),
        pytest.param(errno.EACCES, "net/absent", True, False, id="not there, said as /sys does"),
        pytest.param(errno.EACCES, "net/empty", True, False, id="no value is seen"),
        pytest.param(errno.EROFS, "net/x", False, False, id="needed"),
    ],
)
def test_the_node_is_served_without_tuning_that_takes_more_rights(
    root, monkeypatch, number, name, is_tuning, expected
):
    def refuse(*_, **__):
        raise OSError(number, "no")

    (root / "net/empty").touch()
    monkeypatch.setattr(type(root), "write_text", refuse)
    monkeypatch.setattr(type(root), "open", refuse)
    monkeypatch.setattr(sysctls, "_read", {root / "net/x": 1}.get)
    wanted = [Parameter(name, 2, is_tuning=is_tuning)]
    (refused,), (foreseen,) = sysctls.apply(wanted), sysctls.foresee(wanted)
    assert (expected, expected) == (refused.is_bearable, foreseen.is_bearable)
    assert (name == "net/absent") == refused.is_absent


def test_what_is_below_sys_is_set_by_hand():
    assert f"echo 65536 > {HASH}" == Parameter(HASH, 65536).command


def test_a_module_that_nobody_knows_is_not_loaded():
    assert not sysctls.load_module("no_such_module_anywhere")


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        pytest.param(Parameter("net/x", 1), [], id="right already"),
        pytest.param(Parameter("net/x", 2), [], id="can be written"),
        pytest.param(Parameter("net", 2), ["net"], id="cannot be written"),
        pytest.param(Parameter("net/absent/x", 2), ["net/absent/x"], id="not there"),
        pytest.param(Parameter("net/absent/x", 2, "m"), [], id="a module may bring it"),
    ],
)
def test_what_would_be_refused_is_told_before(root, parameter, expected):
    assert expected == [refusal.parameter.name for refusal in sysctls.foresee([parameter])]
    assert "1\n" == (root / "net/x").read_text()
