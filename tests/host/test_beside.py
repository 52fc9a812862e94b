"""Slow looks, and the end."""

from __future__ import annotations

from threading import Event, Thread

from pykubeproxy.host.beside import Beside


def test_the_end_waits_for_a_look_and_none_begins_after_it():
    beside, began, may_end, done = Beside(), Event(), Event(), []

    def look():
        began.set()
        may_end.wait(30)
        done.append("look")

    beside.run(look)
    assert began.wait(30)
    beside.run(lambda: done.append("late"))
    closing = Thread(target=lambda: (beside.close(), done.append("closed")))
    closing.start()
    may_end.set()
    closing.join(30)
    beside.run(lambda: done.append("later"))
    assert "look" == done[0]
    assert "later" not in done
