from __future__ import annotations

import os

import pytest
from structlog.testing import capture_logs

from pykubeproxy.configbuild import build
from pykubeproxy.configfile import parse_document
from pykubeproxy.errors import ConfigError, Unsupported
from pykubeproxy.reload import Reload

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def judge(text):
    document = parse_document(text, "f")
    return build(document.given, document.notices, document.problems)


def rehearse(config):
    """This node has no IPVS."""
    if config.mode == "ipvs":
        raise Unsupported("no IPVS; load it")


@pytest.fixture
def reload(tmp_path):
    """Follows a file that says HEAD; what it told and asked is in ``told`` and ``asked``."""
    path = tmp_path / "config"
    path.write_text(HEAD)
    reload = Reload(judge(HEAD), path, HEAD, judge, rehearse)
    reload.told, reload.asked = [], []
    reload.tell_valid = reload.told.append
    reload.start(lambda: reload.asked.append(1))
    yield reload
    reload.stop()


def considered(reload, text):
    """What was logged about *text*: events and fields."""
    with capture_logs() as logs:
        reload.consider(text)
    return logs


def test_another_configuration_asks_for_a_restart(reload):
    (entry,) = considered(reload, HEAD + "portRange: x\noomScoreAdj: 5\n")
    assert "configuration file changed, restarting" == entry["event"]
    assert "oomScoreAdj, portRange" == entry["changed"]
    assert (True, [True], [1]) == (reload.wanted, reload.told, reload.asked)


def test_a_wrong_one_is_reported_with_all_that_is_wrong(reload):
    logs = considered(reload, HEAD + "mode: x\noomScoreAdj: 5000\n")
    refused = [entry for entry in logs if entry["event"] == "configuration refused"]
    assert ["mode", "oomScoreAdj"] == [entry["field"] for entry in refused]
    assert "the old configuration stays; correct the file" == logs[-1]["event"]
    assert {"error"} == {entry["log_level"] for entry in logs}
    assert (False, [False], []) == (reload.wanted, reload.told, reload.asked)


def test_what_asks_for_the_same_changes_nothing(reload):
    logs = considered(reload, HEAD + "# a remark\nmode: iptables\nxyzzy: 1\n")
    assert {
        "event": "notice",
        "log_level": "warning",
        "text": "f: unknown field xyzzy, ignored",
    } in logs
    assert "configuration file changed, but nothing that it asks for" == logs[-1]["event"]
    assert (False, [True], []) == (reload.wanted, reload.told, reload.asked)


def test_what_does_not_suit_the_node_object_is_refused_too(reload):
    def check(config):
        raise ConfigError("detectLocalMode", "podCIDRs of another family")

    reload.check_node = check
    refused, _ = considered(reload, HEAD + "oomScoreAdj: 5\n")
    assert "podCIDRs of another family" == refused["reason"]
    assert (False, [False], HEAD) == (reload.wanted, reload.told, reload.text)


def test_a_pipe_is_read_once_and_not_followed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reload = Reload(judge(HEAD), pipe, HEAD, judge, rehearse)
    with capture_logs() as logs:
        reload.start(lambda: None)
    reload.stop()
    assert ["configuration not followed, it came from no file"] == [e["event"] for e in logs]


def test_a_corrected_file_is_valid_again(reload):
    considered(reload, "")
    considered(reload, HEAD)
    assert ([False, True], []) == (reload.told, reload.asked)


def test_a_restart_that_was_asked_for_is_not_taken_back(reload):
    considered(reload, HEAD + "oomScoreAdj: 5\n")
    considered(reload, HEAD)
    assert (True, HEAD) == (reload.wanted, reload.text)


def test_a_restart_begins_with_the_last_text_that_can_be_used(reload):
    wanted = HEAD + "oomScoreAdj: 5\n"
    considered(reload, wanted)
    considered(reload, "kind: x")
    considered(reload, HEAD + "mode: ipvs\n")
    assert (True, wanted) == (reload.wanted, reload.text)


def test_what_this_node_cannot_do_is_refused_too(reload):
    refused, end = considered(reload, HEAD + "mode: ipvs\n")
    assert "no IPVS; load it" == refused["reason"]
    assert ("error", 1) == (end["log_level"], end["problems"])
    assert (False, [False], []) == (reload.wanted, reload.told, reload.asked)
