from __future__ import annotations

from msgspec import structs

from pykubeproxy.config import Config, is_same


def test_configurations_are_the_same_whatever_is_said_about_them():
    assert is_same(Config(notices=("a notice",)), Config())
    assert not is_same(Config(oom_score_adj=0), Config())


def test_what_only_a_page_shows_makes_a_difference_too():
    assert not is_same(structs.replace(Config(), settings={"ipvs.scheduler": "lc"}), Config())
