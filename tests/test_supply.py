"""The source of objects is opened beside the rest of the start."""

from __future__ import annotations

import platform
from threading import Event

import pytest

from pykubeproxy.config import Config
from pykubeproxy.errors import ConfigError
from pykubeproxy.model.objects import Kind
from pykubeproxy.supply import WATCHED, Opened, Supply, node_name
from pykubeproxy.watch.events import Happening
from pykubeproxy.watch.source import Replaced
from tests.fakes.apiserver import FakeApiServer

NAMED = Config(node_name="node")
STARTING = Happening("Starting", "StartKubeProxy", warning=False)


@pytest.mark.parametrize(
    ("given", "host", "expected"),
    [
        pytest.param("", "Host-1.example", "host-1.example", id="the host's name, lower case"),
        pytest.param(" Node-7 ", "host", "node-7", id="as given, trimmed and lower case"),
    ],
)
def test_the_name_of_the_node(monkeypatch, given, host, expected):
    monkeypatch.setattr(platform, "node", lambda: host)
    assert expected == node_name(Config(node_name=given))


def test_a_host_without_a_name_needs_one(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "")
    with pytest.raises(ConfigError, match="--hostname-override"):
        node_name(Config())


class Part:
    """A source or a recorder; notes what is done to it."""

    kinds = frozenset({Kind.NODE})

    def __init__(self, name, done):
        self._name = name
        self._done = done

    def start(self, mailbox=None):
        self._done.append(f"{self._name} started")
        if mailbox is not None:
            mailbox.put(Replaced(Kind.NODE, ()))

    def stop(self):
        self._done.append(f"{self._name} stopped")


def test_objects_wait_in_the_mailbox_and_the_end_is_in_reverse_order():
    done = []
    opened = Opened(Part("source", done), Part("recorder", done))
    supply = Supply(NAMED, lambda config, name: opened)
    supply.start()
    assert opened == supply.wait()
    assert [Replaced(Kind.NODE, ())] == supply.mailbox.drain()
    supply.stop()
    assert ["recorder started", "source started", "source stopped", "recorder stopped"] == done


def test_the_source_is_opened_for_this_configuration_and_node():
    asked = []

    def open_source(config, name):
        asked.append((config, name))
        return Opened(Part("source", []))

    supply = Supply(NAMED, open_source)
    supply.start()
    supply.wait()
    assert [(NAMED, "node")] == asked


def test_a_problem_is_raised_to_whoever_waits():
    def open_source(_config, _name):
        raise ConfigError("--kubeconfig", "no such file")

    supply = Supply(NAMED, open_source)
    supply.start()
    with pytest.raises(ConfigError, match="no such file"):
        supply.wait()
    supply.stop()


def test_a_source_that_is_still_being_opened_at_the_end_is_not_started():
    done, held = [], Event()

    def open_source(_config, _name):
        held.wait()  # a plugin that asks for a password
        return Opened(Part("source", done))

    supply = Supply(NAMED, open_source)
    supply.start()
    supply.stop()
    held.set()
    supply.wait()
    assert [] == done


def test_a_directory_of_manifests_is_a_source_without_events(tmp_path):
    supply = Supply(Config(node_name="node", manifests=str(tmp_path)))
    supply.start()
    opened = supply.wait()
    opened.record(STARTING)
    assert opened.recorder is None
    supply.stop()


def test_an_api_server_is_a_source_with_events(tmp_path):
    with FakeApiServer() as server:
        kubeconfig = str(server.write_kubeconfig(tmp_path))
        supply = Supply(Config(node_name="node", kubeconfig=kubeconfig))
        supply.start()
        opened = supply.wait()
        assert WATCHED == opened.source.kinds
        opened.record(STARTING)
        server.wait_until(lambda: bool(server.events))
        server.wait_for_watches(len(WATCHED))
        supply.stop()
