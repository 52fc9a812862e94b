"""The demo in ipvs mode as people run it, on this kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import eventually
from e2e.kernel.test_demo import Demo, interrupt

SHOWN = (
    "8 manifests read, 6 Services written",
    "not on the list: dropped",
    "$ ipvsadm -Ln -t 10.96.0.20:80",
    "each new connection goes to the next one in the list",
    "p1: gets its share",
    "of them stand for 6 Services",
    "10.96.0.20/32",
    "10.96.0.20,tcp:80",
    "it sent no message that changes something",
    "scale up 3 to 4",
    "nobody left: connection refused",
    "at the very start still works",
    "leaves; nothing new, and what it has may end (1 open",
    "back at weight 1",
    "SIGTERM: the daemon is gone, its 11 virtual servers stay",
    "nothing of ours is left, nobody answers any more",
    "namespaces and processes of the demo are gone",
)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, "--mode", "ipvs")
    yield demo
    if demo.process.poll() is None:
        interrupt(demo)
        demo.ends()


def test_everything_is_shown_and_nothing_is_left(demo: Demo) -> None:
    status = demo.ends(150)
    text = demo.text()
    assert status == 0, text
    assert [line for line in SHOWN if line not in text] == []
    assert "\x1b" not in text, "colours, though nobody watches"
    assert demo.left_behind() == []


def test_ctrl_c_while_an_endpoint_drains_leaves_nothing(demo: Demo) -> None:
    eventually(lambda: demo.reaches("An endpoint leaves"), "the chapter about draining", 150)
    interrupt(demo)
    assert demo.ends() == 130, demo.text()
    assert demo.left_behind() == []
