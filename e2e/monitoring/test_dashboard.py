"""The dashboard by itself: what Grafana needs to show it, and people to read it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from e2e.monitoring.files import MONITORING, dashboard, panels, queries

PANELS = [pytest.param(panel, id=panel["title"]) for panel in panels()]
WIDTH = 24


def test_the_file_is_written_so_that_changes_can_be_read() -> None:
    text = (MONITORING / "dashboard.json").read_text()
    assert json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n" == text


def test_ids_and_titles_are_given_once() -> None:
    everything = dashboard()["panels"]
    for key in ("id", "title"):
        repeated = [k for k, n in Counter(p[key] for p in everything).items() if n > 1]
        assert [] == repeated


def test_no_panel_covers_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}

    everything = dashboard()["panels"]
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= WIDTH for p in everything)
    covered = [
        (a["title"], b["title"]) for a, b in combinations(everything, 2) if cells(a) & cells(b)
    ]
    assert [] == covered


def test_rows_come_in_the_order_of_a_diagnosis() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert [
        "Overview",
        "Latency",
        "Syncs",
        "Work",
        "Watches and API",
        "Rules and IPVS",
        "Health",
        "Conntrack",
        "Process",
    ] == rows


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert "${datasource}" == panel["datasource"]["uid"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_names_its_lines(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])
    letters = [target["refId"] for target in panel["targets"]]
    assert sorted(set(letters)) == letters
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(legends) == len(set(legends))


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_only_what_is_selected(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert target["expr"].count("{") == target["expr"].count(
            'job=~"$job", instance=~"$instance"'
        )


def test_variables_are_those_that_are_used() -> None:
    names = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert ["datasource", "job", "instance", "ip_family"] == names


def test_there_is_much_to_ask() -> None:
    """The tests above and those of the queries would be empty without any."""
    assert len(queries()) > 60
