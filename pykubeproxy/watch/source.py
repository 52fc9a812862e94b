"""What a source of objects promises.

A source runs on threads of its own and puts events into a `Mailbox`:

* one `Replaced` per kind it follows, first, when the first listing of that kind is complete
  (for a kind with no objects too), and again after every fresh listing: whatever is not in it
  (neither in ``objects`` nor in ``unreadable``) is gone;
* after it, `Put` and `Gone` in the order the source saw them.

A source never sends anything because it lost contact: silence means "as before". An object that
cannot be decoded is logged with its name and left as it was.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from pykubeproxy.model.objects import Kind, ObjectKey, WireObject

__all__ = ["Event", "Gone", "Put", "Replaced", "Sink", "Source"]


class Put(Struct, frozen=True):
    """An object appeared or changed."""

    kind: Kind
    object: WireObject


class Gone(Struct, frozen=True):
    """An object was deleted, or no longer matches the selector."""

    kind: Kind
    key: ObjectKey


class Replaced(Struct, frozen=True):
    """A complete listing of one kind.

    ``unreadable`` names objects that exist but could not be decoded: they keep their last value.
    """

    kind: Kind
    objects: tuple[WireObject, ...]
    unreadable: frozenset[ObjectKey] = frozenset()


Event = Put | Gone | Replaced


class Sink(Protocol):
    """Where a source puts its events; safe to call from any thread."""

    def put(self, event: Event) -> None: ...


class Source(Protocol):
    """A running supply of objects."""

    kinds: frozenset[Kind]
    """What this source follows; the first sync waits for a `Replaced` of each."""

    def start(self, sink: Sink) -> None:
        """Begin delivering; returns at once."""

    def stop(self) -> None:
        """End all threads and connections; returns when they are gone."""
