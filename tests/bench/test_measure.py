"""Where time goes, and which numbers stand for many."""

from __future__ import annotations

from bench.measure import Cost, Program, Programs, Row, Stopwatch, median, percentile
from pykubeproxy.host.exec import Stream


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Work:
    """An outer piece of work of 5 s, of which 3 s are spent in an inner one."""

    def __init__(self, clock):
        self._clock = clock

    def outer(self):
        self._clock.now += 2.0
        self.inner()
        return "done"

    def inner(self):
        self._clock.now += 3.0


def test_a_seam_inside_another_counts_for_itself_only():
    clock = Clock()
    watch, work = Stopwatch(clock), Work(clock)
    watch.follow("outside", work, "outer")
    watch.follow("inside", work, "inner")
    assert "done" == work.outer()
    assert {"inside": 3.0, "outside": 2.0} == watch.take()


def test_what_was_taken_is_not_counted_again():
    clock = Clock()
    watch, work = Stopwatch(clock), Work(clock)
    watch.follow("inside", work, "inner")
    work.inner()
    watch.take()
    work.inner()
    work.inner()
    assert {"inside": 6.0} == watch.take()


def test_programs_are_remembered_with_their_whole_input():
    programs = Programs(Stopwatch())
    streamed = Stream(lambda: iter([b"a", b"b"]))
    assert b"ab" == programs.run(["cat"], streamed, 10.0).stdout
    assert b"c" == programs.run(["cat"], b"c", 10.0).stdout
    programs.run(["false"], None, 10.0)
    assert [
        Program(("cat",), [b"a", b"b"], 0),
        Program(("cat",), [b"c"], 0),
        Program(("false",), [], 1),
    ] == programs.runs


def test_input_made_while_a_program_reads_it_is_a_stage_of_its_own():
    watch = Stopwatch()
    Programs(watch).run(["cat"], Stream(lambda: iter([b"a"])), 10.0)
    assert {"kernel", "render"} == watch.take().keys()


def test_a_median_row_has_the_middle_of_each_number():
    runs = [
        Row("", value, stages={"kernel": value / 2}, messages=3, floor=Cost(value / 4))
        for value in (1.0, 2.0, 9.0)
    ]
    row = median("change", runs)
    assert ("change", 2.0, 9.0, 3) == (row.what, row.value, row.p99, row.messages)
    assert {"kernel": 1.0} == row.stages
    assert Cost(0.5) == row.floor


def test_one_run_has_no_99th_percentile():
    assert 0.0 == median("start", [Row("", 2.0)]).p99


def test_a_percentile_is_one_of_the_values():
    values = [float(n) for n in range(100, 0, -1)]
    assert (51.0, 100.0, 0.0) == (
        percentile(values, 0.5),
        percentile(values, 0.99),
        percentile([], 0.5),
    )
