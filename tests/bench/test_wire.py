"""The JSON of worlds is what the proxy decodes to the same objects."""

from __future__ import annotations

import pytest

from bench.wire import as_sent, end_of_list, watch_line
from bench.worlds import World
from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.wire import Bookmark, decode_line

WORLD = World(100, 250, node_ports=0.2, load_balancers=0.2, udp=0.2, empty=0.2, dual_stack=True)


@pytest.mark.parametrize("index", range(0, 100, 7))
def test_a_line_decodes_to_the_object_it_was_made_of(index):
    service = WORLD.service(index)
    assert service == decode_line(Kind.SERVICE, watch_line(service)).object
    for part in WORLD.slices(index):
        assert part == decode_line(Kind.ENDPOINT_SLICE, watch_line(part)).object


def test_an_object_carries_what_a_proxy_skips():
    slice_ = as_sent(WORLD.slices(0)[0], version=7)
    assert "7" == slice_["metadata"]["resourceVersion"]
    assert slice_["metadata"]["managedFields"]
    assert "Pod" == slice_["endpoints"][0]["targetRef"]["kind"]


def test_a_list_ends_with_the_bookmark_of_streaming_lists():
    assert Bookmark("9", True) == decode_line(Kind.SERVICE, end_of_list(9))
