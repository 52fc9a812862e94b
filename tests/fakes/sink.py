"""A sink that remembers, and on which a test can wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pykubeproxy.model.objects import Kind, ObjectKey, WireObject
from pykubeproxy.watch.source import Event, Gone, Put, Replaced
from pykubeproxy.watch.wire import key_of


class RecordingSink:
    """Keeps every event, and the objects that a store fed with them would hold."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.objects: dict[tuple[Kind, ObjectKey], WireObject] = {}
        self._changed = threading.Condition()

    def put(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            match event:
                case Put(kind=kind, object=obj):
                    self.objects[kind, key_of(obj)] = obj
                case Gone(kind=kind, key=key):
                    self.objects.pop((kind, key), None)
                case Replaced(kind=kind, objects=objects, unreadable=unreadable):
                    kept = {
                        identity: obj
                        for identity, obj in self.objects.items()
                        if identity[0] is not kind or identity[1] in unreadable
                    }
                    self.objects = kept | {(kind, key_of(obj)): obj for obj in objects}
            self._changed.notify_all()

    def names(self, kind: Kind = Kind.SERVICE) -> set[str]:
        with self._changed:
            return {key.name for one, key in self.objects if one is kind}

    def listings(self, kind: Kind = Kind.SERVICE) -> int:
        with self._changed:
            return sum(isinstance(e, Replaced) and e.kind is kind for e in self.events)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when *condition* holds, which is asked after each event."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise AssertionError(f"not within {seconds} s; events: {self.events}")
