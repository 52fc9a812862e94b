from __future__ import annotations

import pytest

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Change, Transaction, leftover
from pykubeproxy.sync.tracker import Tracker

A, B, C = (ServiceKey("ns", name) for name in "abc")


@pytest.fixture
def tracker():
    """Keys that begin with ``shared`` can be wanted by several owners; ``part`` goes with it."""
    return Tracker(claim)


def claim(key):
    if key.startswith("part of "):
        return key.removeprefix("part of ")
    return key if key.startswith("shared") else None


def land(tracker):
    """Confirm everything that is missing, as after a successful write; return it."""
    changes = tracker.changes()
    tracker.confirm(Transaction("t", tuple(changes)))
    return changes


def settled(tracker, *wants):
    for owner, objects, *age in wants:
        tracker.want(owner, objects, *age)
    land(tracker)
    return tracker


class Kernel:
    """What a read-back showed: a dictionary."""

    def __init__(self, objects, strays=()):
        self.objects = objects
        self._strays = strays

    def holds(self, key, value):
        return self.objects.get(key) == value

    def strays(self, wanted):
        known = {key for objects in wanted for key in objects}
        return {key: self.objects[key] for key in self._strays if key not in known}


def test_nothing_wanted_is_in_sync(tracker):
    assert tracker.is_settled


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {"x": 1}, [Change(A, {"x": 1}, {}, {})], id="new"),
        pytest.param({"x": 1}, {"x": 2}, [Change(A, {"x": 2}, {}, {"x": 1})], id="changed"),
        pytest.param({"x": 1}, {}, [Change(A, {}, {"x": 1}, {})], id="gone"),
        pytest.param(
            {"x": 1, "y": 1}, {"x": 1, "z": 1}, [Change(A, {"z": 1}, {"y": 1}, {})], id="mixed"
        ),
        pytest.param({"x": 1}, {"x": 1}, [], id="same"),
        pytest.param({}, {}, [], id="never anything"),
    ],
)
def test_a_change_is_what_the_owner_lacks(tracker, before, after, expected):
    settled(tracker, (A, before))
    tracker.want(A, after)
    assert expected == tracker.changes()


def test_a_second_look_without_a_write_says_the_same(tracker):
    tracker.want(A, {"x": 1})
    assert tracker.changes() == tracker.changes()


def test_what_was_confirmed_is_no_longer_missing(tracker):
    settled(tracker, (A, {"x": 1}))
    assert tracker.is_settled


def test_only_owners_that_differ_have_changes(tracker):
    settled(tracker, (A, {"x": 1}), (B, {"y": 1}))
    tracker.want(B, {"y": 2})
    assert [change.owner for change in tracker.changes()] == [B]


def test_changes_come_in_the_order_of_owners(tracker):
    for owner in (C, A, B):
        tracker.want(owner, {str(owner): 1})
    assert [change.owner for change in tracker.changes()] == [A, B, C]


def test_a_change_that_cancels_out_is_none(tracker):
    settled(tracker, (A, {"x": 1}))
    tracker.want(A, {"x": 2})
    tracker.want(A, {"x": 1})
    assert tracker.changes() == []


def test_add_and_delete_before_a_write_leave_no_trace(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(A, {})
    tracker.changes()
    books = (tracker._wanted, tracker._applied, tracker._ranks, tracker._claims, tracker._dirty)
    assert not any(books)


def test_a_deleted_owner_leaves_no_trace(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"))
    tracker.want(A, {})
    land(tracker)
    books = (tracker._wanted, tracker._applied, tracker._ranks, tracker._claims, tracker._dirty)
    assert not any(books)


def test_a_part_that_landed_is_not_written_again(tracker):
    tracker.want(A, {"x": 1, "y": 1})
    tracker.confirm(Transaction("t", (Change(A, {"x": 1}, {}, {}),)))
    assert tracker.changes() == [Change(A, {"y": 1}, {}, {})]


def test_a_first_write_costs_no_copy_of_what_is_wanted(tracker):
    tracker.want(A, {"x": 1, "y": 1})
    (change,) = tracker.changes()
    assert tracker.wanted(A) is change.put


def test_what_is_settled_is_held_once(tracker):
    tracker.want(A, {"x": 1, "y": 1})
    for key in ("x", "y"):
        tracker.confirm(Transaction("t", (Change(A, {key: 1}, {}, {}),)))
    (applied,) = tracker.applied()
    assert tracker.wanted(A) is applied


def test_writing_does_not_change_what_is_wanted(tracker):
    settled(tracker, (A, {"x": 1}))
    tracker.confirm(Transaction("t", (Change(A, {}, {"x": 1}, {}),)))
    assert tracker.wanted(A) == {"x": 1}


# --- holding ---


def test_an_owner_on_hold_is_left_alone(tracker):
    tracker.want(A, {"x": 1})
    tracker.want(B, {"y": 1})
    tracker.hold(A)
    assert [change.owner for change in tracker.changes()] == [B]


def test_a_released_owner_is_caught_up_with(tracker):
    tracker.want(A, {"x": 1})
    tracker.hold(A)
    tracker.changes()
    tracker.release(A)
    assert tracker.changes() == [Change(A, {"x": 1}, {}, {})]


def test_only_what_is_on_hold_may_be_missing_from_what_is_settled(tracker):
    tracker.want(A, {"x": 1})
    tracker.changes()
    assert not tracker.is_settled
    tracker.hold(A)
    assert tracker.is_settled
    tracker.want(B, {"y": 1})
    assert not tracker.is_settled


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after it"])
def test_an_owner_owes_until_its_objects_are_written(tracker, written):
    tracker.want(A, {"x": 1})
    if written:
        land(tracker)
    assert tracker.owes(A) is not written


# --- conflicts ---


@pytest.mark.parametrize(
    ("wants", "winner"),
    [
        pytest.param([(A, "2025"), (B, "2024")], B, id="the older wins"),
        pytest.param([(B, "2024"), (A, "2025")], B, id="in any order"),
        pytest.param([(B, "2024"), (A, "2024")], A, id="then the smaller name"),
        pytest.param([(C, "2024"), (B, "2025"), (A, "2026")], C, id="of three"),
    ],
)
def test_one_owner_has_a_contested_key(tracker, wants, winner):
    for owner, age in wants:
        tracker.want(owner, {"shared": str(owner)}, age)
    assert [change.owner for change in tracker.changes()] == [winner]


def test_the_loser_keeps_its_other_objects(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(B, {"shared": 2, "own": 2}, "2025")
    assert tracker.changes()[1] == Change(B, {"own": 2}, {}, {})


def test_keys_that_are_not_exclusive_are_not_contested(tracker):
    tracker.want(A, {"x": 1})
    tracker.want(B, {"x": 1})
    assert list(tracker.conflicts()) == []


def test_conflicts_name_key_winner_and_every_loser(tracker):
    for owner, age in ((A, "2024"), (B, "2025"), (C, "2026")):
        tracker.want(owner, {"shared": age}, age)
    assert list(tracker.conflicts()) == [("shared", A, B), ("shared", A, C)]


def test_owners_that_want_the_same_are_no_conflict(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"), (B, {"shared": 1}, "2025"))
    assert list(tracker.conflicts()) == []


def test_owners_that_want_other_parts_are_a_conflict(tracker):
    tracker.want(A, {"shared": 1, "part of shared": 1}, "2024")
    tracker.want(B, {"shared": 1, "part of shared": 2}, "2025")
    assert list(tracker.conflicts()) == [("shared", A, B)]


def test_an_agreement_that_is_left_is_a_conflict(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"), (B, {"shared": 1}, "2025"))
    tracker.want(A, {"shared": 2}, "2024")
    assert list(tracker.conflicts()) == [("shared", A, B)]


def test_a_conflict_is_new_once(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(B, {"shared": 2}, "2025")
    assert [("shared", A, B)] == list(tracker.take_new_conflicts())
    tracker.want(B, {"shared": 3}, "2025")
    tracker.want(A, {"shared": 4}, "2024")
    assert [] == list(tracker.take_new_conflicts())


def test_a_conflict_with_another_winner_is_new(tracker):
    for owner, age in ((A, "2024"), (B, "2025"), (C, "2026")):
        tracker.want(owner, {"shared": age}, age)
    list(tracker.take_new_conflicts())
    tracker.want(A, {})
    assert [("shared", B, C)] == list(tracker.take_new_conflicts())


def test_a_conflict_that_is_over_before_anybody_asked_is_not_told(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(B, {"shared": 2}, "2025")
    tracker.want(B, {"shared": 1}, "2025")
    assert [] == list(tracker.take_new_conflicts())


def test_parts_go_with_what_they_are_part_of(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(B, {"shared": 1, "part of shared": 2, "own": 2}, "2025")
    assert tracker.changes()[1] == Change(B, {"own": 2}, {}, {})


def test_nothing_is_written_when_the_next_one_wants_the_same(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"), (B, {"shared": 1}, "2025"))
    tracker.want(A, {})
    assert tracker.changes() == []
    assert tracker.is_settled


def test_what_the_last_owner_shared_goes(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"), (B, {"shared": 1}, "2025"))
    tracker.want(A, {})
    tracker.want(B, {})
    assert [(c.put, c.drop) for c in tracker.changes()] == [({}, {"shared": 1})]


def test_the_next_one_writes_what_it_wants_otherwise(tracker):
    settled(
        tracker,
        (A, {"shared": "a", "part of shared": "a"}, "2024"),
        (B, {"shared": "b"}, "2025"),
    )
    tracker.want(A, {})
    assert tracker.changes() == [
        Change(B, {"shared": "b"}, {"part of shared": "a"}, {"shared": "a"})
    ]


def test_a_conflict_ends_when_one_side_gives_in(tracker):
    tracker.want(A, {"shared": 1}, "2024")
    tracker.want(B, {"shared": 2}, "2025")
    tracker.want(B, {"other": 2}, "2025")
    assert list(tracker.conflicts()) == []


def test_an_older_newcomer_takes_the_key_over(tracker):
    settled(tracker, (B, {"shared": "b"}, "2025"))
    tracker.want(A, {"shared": "a"}, "2024")
    assert tracker.changes() == [Change(A, {"shared": "a"}, {}, {"shared": "b"})]


@pytest.mark.parametrize(
    "objects", [{}, {"other": 1}], ids=["the winner goes", "the winner lets go"]
)
def test_the_next_one_takes_a_free_key_over(tracker, objects):
    settled(tracker, (A, {"shared": "a"}, "2024"), (B, {"shared": "b"}, "2025"))
    tracker.want(A, objects, "2024")
    land(tracker)
    assert tracker.changes() == []
    assert tracker._applied[B] == {"shared": "b"}


def test_what_one_gives_up_and_another_takes_is_not_removed(tracker):
    settled(tracker, (B, {"shared": 1, "part of shared": 2}, "2024"))
    tracker.want(B, {})
    tracker.want(A, {"shared": 1}, "2025")
    assert tracker.changes() == [Change(A, {}, {"part of shared": 2}, {})]


def test_what_was_removed_is_written_for_the_next_one(tracker):
    settled(tracker, (B, {"shared": 1}, "2024"), (B, {}))
    tracker.want(A, {"shared": 1}, "2025")
    assert tracker.changes() == [Change(A, {"shared": 1}, {}, {})]


def test_what_is_given_up_and_wanted_again_stays(tracker):
    settled(tracker, (A, {"shared": 1}, "2024"))
    tracker.want(A, {})
    tracker.want(A, {"shared": 1}, "2024")
    assert tracker.changes() == []


def test_an_owner_that_was_made_anew_loses_its_rank(tracker):
    settled(tracker, (A, {"shared": "a"}, "2024"), (B, {"shared": "b"}, "2025"))
    tracker.want(A, {"shared": "a"}, "2026")
    assert list(tracker.conflicts()) == [("shared", B, A)]


# --- reading back ---


@pytest.mark.parametrize(
    ("kernel", "surprises", "expected"),
    [
        pytest.param({"x": 1}, 0, [], id="as noted"),
        pytest.param({}, 1, [Change(A, {"x": 1}, {}, {})], id="gone"),
        pytest.param({"x": 2}, 1, [Change(A, {"x": 1}, {}, {})], id="changed"),
    ],
)
def test_a_read_back_corrects_the_notes(tracker, kernel, surprises, expected):
    settled(tracker, (A, {"x": 1}))
    assert tracker.align(Kernel(kernel)) == surprises
    assert expected == tracker.changes()


def test_what_the_kernel_holds_already_is_not_written(tracker):
    tracker.want(A, {"x": 1, "y": 1})
    tracker.align(Kernel({"x": 1}))
    assert tracker.changes() == [Change(A, {"y": 1}, {}, {})]


def test_a_removal_that_happened_unnoticed_is_not_repeated(tracker):
    settled(tracker, (A, {"x": 1}))
    tracker.want(A, {})
    tracker.align(Kernel({}))
    assert tracker.changes() == []


def test_objects_that_nobody_wants_are_dropped(tracker):
    tracker.align(Kernel({"old": 1}, strays=["old"]))
    assert tracker.changes() == [Change(leftover("old"), {}, {"old": 1}, {})]


def test_objects_of_a_deleted_owner_are_no_strays(tracker):
    settled(tracker, (A, {"x": 1}))
    tracker.want(A, {})
    tracker.align(Kernel({"x": 1}, strays=["x"]))
    assert tracker.changes() == [Change(A, {}, {"x": 1}, {})]


def test_strays_that_went_by_themselves_are_forgotten(tracker):
    tracker.align(Kernel({"old": 1}, strays=["old"]))
    tracker.align(Kernel({}))
    assert tracker.changes() == []


def test_strays_that_are_still_there_at_the_next_read_back_are_not_forgotten(tracker):
    for _ in range(2):
        tracker.align(Kernel({"old": 1}, strays=["old"]))
    assert tracker.changes() == [Change(leftover("old"), {}, {"old": 1}, {})]
    tracker.want(A, {"old": 2})
    assert [change.owner for change in tracker.changes() if change.drop] == []


def test_a_read_back_is_told_everything_before_it_is_asked(tracker):
    """What is only right as a whole can be judged as a whole."""

    class Whole(Kernel):
        def strays(self, wanted):
            assert [{"x": 1}, {"y": 1}] == sorted(map(dict, wanted), key=str)
            self.objects = {"x": 1}
            return {}

    tracker.want(A, {"x": 1})
    tracker.want(B, {"y": 1})
    tracker.align(Whole({}))
    assert tracker.changes() == [Change(B, {"y": 1}, {}, {})]


def test_a_stray_that_is_wanted_again_is_not_dropped(tracker):
    tracker.align(Kernel({"x": 1}, strays=["x"]))
    tracker.want(A, {"x": 2})
    assert [change.owner for change in tracker.changes() if "x" in change.drop] == []


# --- rules in total ---


def lengths(objects):
    """Values are as many rules as they say, in the table their key begins with."""
    counts = {}
    for key, value in objects.items():
        counts[key[0]] = counts.get(key[0], 0) + value
    return counts


def test_rules_are_counted_as_they_come_and_go():
    tracker = Tracker(claim, lengths)
    tracker.want(A, {"n1": 3, "n2": 1, "f": 1})
    tracker.want(B, {"n3": 5})
    tracker.want(A, {"n1": 4})
    assert {"n": 9, "f": 0} == tracker.counts
    tracker.want(B, {})
    assert {"n": 4, "f": 0} == tracker.counts


def test_what_is_wanted_counts_whatever_the_kernel_holds():
    tracker = Tracker(claim, lengths)
    settled(tracker, (A, {"n1": 3}))
    tracker.align(Kernel({"n9": 7}, strays=["n9"]))
    assert {"n": 3} == tracker.counts


def test_rules_of_unchanged_owners_are_not_counted_again():
    counted = []
    tracker = Tracker(claim, lambda objects: counted.append(objects) or {})
    settled(tracker, (A, {"n1": 3}), (B, {"n2": 3}))
    counted.clear()
    tracker.want(A, {"n1": 3})
    tracker.want(B, {"n2": 4})
    assert [{"n2": 3}, {"n2": 4}] == counted
