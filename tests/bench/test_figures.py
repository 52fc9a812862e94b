"""From a file of figures to a picture and a page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bench.chart import Panel, Series, chart
from bench.figures import BEGIN, END, picture, publish, with_tables
from bench.measure import Cost, Row
from bench.results import Job, Machine, Results, Run, line, load, markdown, save
from bench.worlds import World

MACHINE = Machine(2, "6.18.0", "1.8.9", "3.11.7")
SVG = "{http://www.w3.org/2000/svg}"


def _results():
    results = Results(MACHINE)
    for size in (1000, 10_000):
        for backend in ("nft", "legacy"):
            world = World(size, 5)
            outside = [
                Row("start to first connection", size / 2000, own=0.5),
                Row("one endpoint changed", size / 1e5, size / 5e4, 0.02),
                Row("peak memory", 120.0, unit="MB"),
                Row("restart, nothing changed", 1.5, own=0.4, messages=22),
            ]
            change = Row("one endpoint changed", 0.04, stages={"kernel": 0.03}, floor=Cost(0.025))
            first = Row("first write", 0.7, floor=Cost(0.3), messages=23_000, programs=9)
            results.add(Run(Job("daemon", backend, world), outside))
            results.add(Run(Job("stages", backend, world), [first, change]))
    results.add(Run(Job("memory", "nft", World(0, 0)), [Row("a Service", 3764.3, unit="bytes")]))
    return results


def _texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


# --- the file ---


def test_results_are_read_as_they_were_written(tmp_path):
    save(_results(), tmp_path / "r.json")
    assert _results() == load(tmp_path / "r.json")


def test_a_job_done_again_replaces_its_figures():
    results = _results()
    count = len(results.runs)
    again = Run(Job("daemon", "nft", World(1000, 5)), [Row("start to first connection", 9.0)])
    results.add(again)
    assert count == len(results.runs)
    assert again in results.runs


def test_other_kinds_of_services_are_another_world():
    results = _results()
    count = len(results.runs)
    results.add(Run(Job("daemon", "nft", World(1000, 5, node_ports=0.1)), []))
    assert count + 1 == len(results.runs)


# --- the tables ---


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param("2 cores, Linux 6.18.0, iptables 1.8.9, Python 3.11.7.", id="the machine"),
        pytest.param("### From outside, nf_tables", id="a heading for each backend"),
        pytest.param("|  | 1,000 x 5 | 10,000 x 5 |", id="worlds across, small ones first"),
        pytest.param("| start to first connection | 500 ms | 5.00 s |", id="units that read well"),
        pytest.param(
            "| one endpoint changed | 10 ms / 20 ms | 100 ms / 200 ms |", id="p50 and p99"
        ),
        pytest.param("| one endpoint changed: CPU | 20 ms | 20 ms |", id="CPU"),
        pytest.param("| peak memory | 120 MB | 120 MB |", id="other units"),
        pytest.param(
            "| restart, nothing changed: rules written | 22 | 22 |", id="what was written"
        ),
        pytest.param("| one endpoint changed | 40 ms (25 ms) | 40 ms (25 ms) |", id="the floor"),
        pytest.param("| kernel | 30 ms | 30 ms |", id="stages"),
        pytest.param("| messages, programs | 23,000, 9 | 23,000, 9 |", id="work"),
        pytest.param("Memory for a Service: 3,764 bytes.", id="memory"),
    ],
)
def test_the_tables_have(expected):
    assert expected in markdown(_results()).splitlines()


def test_what_was_not_measured_has_no_table():
    assert "ipvs" not in markdown(_results())


def test_tables_replace_what_is_between_the_marks():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert f"before\n{BEGIN}\n\nnew\n{END}\nafter\n" == with_tables(page, "new")


@pytest.mark.parametrize("page", ["nothing", BEGIN, END])
def test_a_page_without_marks_is_refused(page):
    with pytest.raises(ValueError, match="figures"):
        with_tables(page, "new")


def test_publishing_twice_changes_nothing(tmp_path):
    data, page, svg = (tmp_path / f"performance.{kind}" for kind in ("json", "md", "svg"))
    save(_results(), data)
    page.write_text(f"# Performance\n\n{BEGIN}\n{END}\n")
    publish(data)
    once = page.read_text(), svg.read_text()
    publish(data)
    assert once == (page.read_text(), svg.read_text())
    assert "10,000 x 5" in once[0]


# --- the picture ---


def test_the_picture_says_what_it_shows():
    texts = _texts(picture(_results()))
    assert {"Start to first connection", "One endpoint changed"} <= set(texts)
    assert {"nf_tables", "legacy", "nf_tables, kernel and tool alone"} <= set(texts)
    assert {"1,000", "10,000", "100 ms", "5 s"} <= set(texts)


def test_a_name_is_once_in_the_legend():
    assert 1 == _texts(picture(_results())).count("legacy")


def test_worlds_with_other_numbers_of_endpoints_are_left_out():
    results = _results()
    before = picture(results)
    rows = [Row("start to first connection", 77.0)]
    results.add(Run(Job("daemon", "nft", World(1000, 250)), rows))
    assert before == picture(results)


def test_nothing_measured_is_no_picture():
    with pytest.raises(ValueError, match="nothing to draw"):
        picture(Results(MACHINE))


def _chart(*points):
    panel = Panel("t", (Series("s", points, "#000000"),), "x", "{:g}".format, "{:g}".format)
    return ElementTree.fromstring(chart([panel]))


def _circles(svg):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle")]


def test_equal_ratios_are_equal_distances():
    (x1, y1), (x2, y2), (x3, y3) = _circles(_chart((1, 1), (10, 10), (100, 100)))
    assert (x2 - x1, y2 - y1) == pytest.approx((x3 - x2, y3 - y2), abs=0.2)
    assert x1 < x2
    assert y1 > y2


@pytest.mark.parametrize("point", [(1, 1), (3, 7), (10_000, 0.02)])
def test_a_single_point_is_inside_the_paper(point):
    svg = _chart(point)
    [(x, y)] = _circles(svg)
    assert 0 < x < float(svg.get("width"))
    assert 0 < y < float(svg.get("height"))


def test_what_has_no_place_on_a_logarithmic_axis_is_refused():
    with pytest.raises(ValueError, match="logarithmic"):
        _chart((0, 1))


# --- the terminal ---


def test_a_line_shows_where_time_went_and_what_is_left_of_it_without_us():
    row = Row("change", 0.04, messages=14, stages={"kernel": 0.038, "diff": 1e-6}, floor=Cost(0.03))
    cells = line(row).split()
    assert ["change", "40", "ms"] == cells[:3]
    assert ["30", "ms", "14", "kernel", "38", "ms"] == cells[3:]
