"""The mailbox hands over everything once, in order, and never makes a writer wait."""

from __future__ import annotations

import threading

import pytest

from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.source import Gone


def gone(name: str) -> Gone:
    return Gone(Kind.SERVICE, ObjectKey("default", name))


def test_events_come_out_once_and_in_order() -> None:
    mailbox = Mailbox()
    for name in "abc":
        mailbox.put(gone(name))
    assert [gone("a"), gone("b"), gone("c")] == mailbox.drain()
    assert mailbox.drain() == []


def test_wait_returns_at_once_while_something_is_in() -> None:
    mailbox = Mailbox()
    mailbox.put(gone("a"))
    mailbox.wait(None)
    assert [gone("a")] == mailbox.drain()


def test_wait_without_events_ends_with_its_time() -> None:
    mailbox = Mailbox()
    mailbox.wait(0.001)
    assert mailbox.drain() == []


def test_wake_before_wait_is_not_lost_and_counts_once() -> None:
    mailbox = Mailbox()
    mailbox.wake()
    mailbox.wait(None)
    mailbox.wait(0.001)  # would hang the next reader at None if the wake were still there
    assert mailbox.drain() == []


@pytest.mark.parametrize("how", ["put", "wake"])
def test_a_waiting_reader_is_woken(how: str) -> None:
    mailbox = Mailbox()
    reader = threading.Thread(target=mailbox.wait, args=(None,))
    reader.start()
    if how == "put":
        mailbox.put(gone("a"))
    else:
        mailbox.wake()
    reader.join(60)
    assert not reader.is_alive()


def test_many_writers_lose_nothing() -> None:
    mailbox = Mailbox()

    def write(writer: int) -> None:
        for n in range(200):
            mailbox.put(gone(f"{writer}-{n}"))

    writers = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    events = mailbox.drain()
    assert len(events) == 800
    for writer in range(4):
        mine = [e.key.name for e in events if e.key.name.startswith(f"{writer}-")]
        assert [f"{writer}-{n}" for n in range(200)] == mine


def test_an_event_comes_with_the_moment_it_was_put_in() -> None:
    moments = iter([3.0, 5.0])
    mailbox = Mailbox(lambda: next(moments))
    mailbox.put(gone("a"))
    mailbox.put(gone("b"))
    assert [(3.0, gone("a")), (5.0, gone("b"))] == mailbox.drain_timed()
    assert mailbox.drain_timed() == []
