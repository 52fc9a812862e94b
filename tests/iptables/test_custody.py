"""Our commits told from those of others; the kernel is a number."""

from __future__ import annotations

import pytest

from pykubeproxy.iptables.custody import Custody


class Kernel:
    """Counts commits, as the kernel does."""

    def __init__(self, generation=7):
        self.generation = generation
        self.custody = Custody(lambda: self.generation)

    def commit(self, *, counts=True, adds=1):
        with self.custody.committing() as commit:
            self.generation = self.generation and self.generation + adds
            commit.counts = counts


def test_our_commits_are_no_new_epoch():
    kernel = Kernel()
    epoch = kernel.custody.epoch()
    for _ in range(3):
        kernel.commit()
    assert epoch == kernel.custody.epoch()
    assert 10 == kernel.custody.generation(epoch)
    assert 3 == kernel.custody.commits


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        pytest.param({"adds": 0}, True, id="nothing was committed"),
        pytest.param({"adds": 0, "counts": False}, True, id="refused"),
        pytest.param({"adds": 1, "counts": False}, False, id="killed after the commit"),
        pytest.param({"adds": 2}, False, id="somebody else committed meanwhile"),
        pytest.param({"adds": 1, "counts": False}, False, id="refused, and somebody else"),
    ],
)
def test_a_commit_that_is_not_ours_for_certain_begins_an_epoch(happens, expected):
    kernel = Kernel()
    epoch = kernel.custody.epoch()
    kernel.commit(**happens)
    assert expected is (epoch == kernel.custody.epoch())


def test_a_commit_of_somebody_else_begins_an_epoch():
    kernel = Kernel()
    epoch = kernel.custody.epoch()
    kernel.generation += 1
    kernel.commit()
    assert epoch != kernel.custody.epoch()
    assert kernel.custody.generation(epoch) is None


def test_an_epoch_does_not_come_back():
    kernel = Kernel()
    seen = set()
    for _ in range(5):
        kernel.generation += 1
        kernel.commit()
        seen.add(kernel.custody.epoch())
    assert 5 == len(seen)


def test_a_tool_that_raises_is_not_counted():
    kernel = Kernel()

    def tool():
        with kernel.custody.committing():
            kernel.generation += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool()
    assert 0 == kernel.custody.commits


def test_where_the_kernel_does_not_count_there_is_no_epoch():
    custody = Custody()
    with custody.committing() as commit:
        commit.counts = True
    assert (None, None) == (custody.epoch(), custody.generation(None))
