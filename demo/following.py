"""How long a change takes until new connections follow it, measured with connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import NamedTuple

from demo.stage import Stage, Unmet, who
from e2e.guest import in_guest
from e2e.lab import Reply

__all__ = ["Followed", "follow", "judge"]

_EVERY_SECONDS = 0.001  # a probe is begun this often
_PAST_SECONDS = 0.3  # how much must be known after the moment that counts
_PATIENCE_SECONDS = 15.0 if in_guest() else 5.0


class Outcome(NamedTuple):
    """Who answered a probe; both times in seconds after the change."""

    started: float
    ended: float
    name: str


class Followed(NamedTuple):
    """*seconds* until connections followed; *lost* met neither the old state nor the new one."""

    seconds: float
    probes: int
    lost: int


def judge(
    outcomes: Collection[Outcome],
    before: Collection[str],
    after: Collection[str],
) -> Followed | None:
    """When the state *before* was over and somebody new had answered; ``None``: not yet.

    Names in both states prove nothing. An answer counts from the moment it had arrived, because
    nobody knows when between its begin and its end a probe met the rules: no figure is too good.
    """
    wrong = [one.started for one in outcomes if one.name not in after]
    last_wrong = max(wrong, default=-1.0)
    right = [one.ended for one in outcomes if one.started > last_wrong]
    news = set(after) - set(before)
    new = [one.ended for one in outcomes if one.name in news]
    if not right or (news and not new):
        return None
    seconds = max(min(right), min(new, default=0.0))
    lost = sum(one.name not in {*before, *after} for one in outcomes)
    return Followed(seconds, len(outcomes), lost)


def follow(
    stage: Stage,
    sender: str,
    target: str,
    port: int,
    change: Callable[[], None],
    before: Collection[str],
    after: Collection[str],
) -> Followed:
    """Make *change* while connecting every millisecond, until connections follow it for good.

    Raises:
        Unmet: they did not in time.
    """
    ticks = _ticks()
    outcomes: list[Outcome] = []
    under_way: dict[float, Future[Reply]] = {}
    change()
    began = time.monotonic()

    def note(started: float, probe: Future[Reply]) -> None:
        # On the lab's thread, the moment the answer is there.
        outcomes.append(Outcome(started, time.monotonic() - began, who(probe.result())))

    while True:
        next(ticks)
        now = time.monotonic() - began
        under_way[now] = stage.lab.start_probe(sender, target, port)
        under_way[now].add_done_callback(partial(note, now))
        for started in [started for started, probe in under_way.items() if probe.done()]:
            under_way.pop(started).result()  # an error of the probe itself is raised here
        oldest_open = min(under_way, default=now)
        followed = judge(list(outcomes), before, after)
        if followed is not None and oldest_open - followed.seconds >= _PAST_SECONDS:
            return followed
        if now > _PATIENCE_SECONDS:
            raise Unmet(
                f"connections to {target} port {port} did not follow within "
                f"{_PATIENCE_SECONDS:g} s: wanted {sorted(after)}, the last were answered by "
                f"{sorted({one.name for one in outcomes[-20:]})}\n{stage.last_words()}"
            )


def _ticks() -> Iterator[int]:
    pause = threading.Event()  # never set
    for number in count():
        yield number
        pause.wait(_EVERY_SECONDS)
