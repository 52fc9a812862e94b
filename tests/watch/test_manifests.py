"""A directory of manifests is followed through every way that files change."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Semaphore

import pytest
from inotify_simple import Event as Notice
from inotify_simple import INotify, flags
from structlog.testing import capture_logs

from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey
from pykubeproxy.watch import manifests
from pykubeproxy.watch.manifest_files import parse
from pykubeproxy.watch.manifests import Catalog, ManifestSource
from pykubeproxy.watch.source import Gone, Put, Replaced
from tests.fakes.sink import RecordingSink


def service(name: str, address: str = "10.96.0.1", port: object = 80) -> str:
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: {address}, ports: [{{port: {port}}}]}}\n"
    )


def slice_(*addresses: str) -> str:
    endpoints = "".join(f"- addresses: [{address}]\n" for address in addresses)
    return (
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1}\n"
        f"ports: [{{port: 80}}]\nendpoints:\n{endpoints}"
    )


# --- the catalog: what files say together ------------------------------------------------------


def catalog(**files: str) -> Catalog:
    made = Catalog("node-0")
    for name, text in files.items():
        made.load(name, parse(text))
    return made


def names(changes: list[Put | Gone]) -> list[str]:
    return [
        f"-{one.key.name}" if isinstance(one, Gone) else f"+{one.object.metadata.name}"
        for one in changes
    ]


def test_the_first_reading_is_one_listing_per_kind() -> None:
    listings = catalog(a=service("web")).replaced(Kind)
    assert sorted(Kind) == [one.kind for one in listings]
    assert {one.kind: len(one.objects) for one in listings if one.objects} == {Kind.SERVICE: 1}


def test_only_what_changed_is_delivered() -> None:
    made = catalog(a=service("one") + service("two"), b=service("three"))
    made.replaced(Kind)
    made.load("a", parse("# a comment\n" + service("one") + service("two", port=81)))
    assert names(made.changes()) == ["+two"]
    made.load("a", parse(service("one")))
    assert names(made.changes()) == ["-two"]
    made.forget("b")
    assert names(made.changes()) == ["-three"]
    assert made.changes() == []


def test_an_annotated_slice_that_was_taken_apart_is_not_delivered_again() -> None:
    """Whoever gets a slice takes its trigger time out of it."""
    annotation = "endpoints.kubernetes.io/last-change-trigger-time"
    text = slice_("10.0.0.1").replace(
        "{name: web-1}", f'{{name: web-1, annotations: {{{annotation}: "2026-01-02T03:04:05Z"}}}}'
    )
    made = catalog(a=text)
    (given,) = made.replaced([Kind.ENDPOINT_SLICE])[0].objects
    assert isinstance(given, EndpointSlice)
    assert given.take_trigger_time() == "2026-01-02T03:04:05Z"
    for _ in range(2):
        made.load("a", parse(text))
        assert made.changes() == []
    made.load("a", parse(text.replace("10.0.0.1", "10.0.0.2")))
    (change,) = made.changes()
    assert isinstance(change, Put)
    assert change.object.take_trigger_time() is not None  # type: ignore[union-attr]  # a slice
    made.load("a", parse(text.replace("10.0.0.1", "10.0.0.2") + "# edited\n"))
    assert made.changes() == []


def test_the_first_file_by_name_wins_and_the_second_takes_over() -> None:
    made = catalog(b=service("web", port=2), a=service("web", port=1))
    with capture_logs() as logs:
        made.replaced(Kind)
        made.load("b", parse(service("web", port=3)))
        assert made.changes() == []
        made.forget("a")
        (change,) = made.changes()
    assert isinstance(change, Put)
    assert change.object.spec.ports[0].port == 3  # type: ignore[union-attr,index]  # a Service
    told = [entry for entry in logs if entry["event"].startswith("object defined in two files")]
    assert [(entry["used"], entry["ignored"]) for entry in told] == [("a", "b:2")]


def test_an_object_twice_in_a_file_counts_once_and_is_told() -> None:
    with capture_logs() as logs:
        made = catalog(a=service("web", port=1) + service("web", port=2))
    listing = made.replaced([Kind.SERVICE])[0]
    assert [one.spec.ports[0].port for one in listing.objects] == [1]  # type: ignore[union-attr,index]  # Services
    assert [entry["place"] for entry in logs] == ["a:7"]


def test_a_broken_file_keeps_its_last_good_content_and_is_told_once() -> None:
    made = catalog(a=service("web"))
    made.replaced(Kind)
    with capture_logs() as logs:
        for _ in range(3):
            made.load("a", parse(service("web") + "  - ["))
            assert made.changes() == []
    assert [entry["event"] for entry in logs] == ["file broken, kept as it was"]
    assert logs[0]["place"].startswith("a:")
    made.load("a", parse(service("other")))
    assert names(made.changes()) == ["-web", "+other"]


@pytest.mark.parametrize("empty", ["", "\n", "# all gone\n", "---\n"])
def test_a_file_that_becomes_empty_keeps_its_last_good_content(empty: str) -> None:
    made = catalog(a=service("web"), b="")
    made.replaced(Kind)
    with capture_logs() as logs:
        for _ in range(3):
            made.load("a", parse(empty))
            made.load("b", parse(empty))
            assert made.changes() == []
    assert [(entry["event"], entry["place"]) for entry in logs] == [
        ("file empty, kept as it was", "a:1")
    ]
    made.forget("a")
    assert names(made.changes()) == ["-web"]


def test_a_list_without_items_does_remove_the_objects() -> None:
    made = catalog(a=service("web"))
    made.replaced(Kind)
    made.load("a", parse("apiVersion: v1\nkind: List\nitems: []\n"))
    assert names(made.changes()) == ["-web"]


def test_a_bad_object_keeps_its_last_value_while_the_others_follow() -> None:
    made = catalog(a=service("web") + service("api"))
    made.replaced(Kind)
    made.load("a", parse(service("web", port="x") + service("api", port=81)))
    assert names(made.changes()) == ["+api"]
    made.load("a", parse(service("api", port=81)))
    assert names(made.changes()) == ["-web"]


def test_a_bad_object_of_the_first_reading_is_unreadable_not_gone() -> None:
    listing = catalog(a=service("web", port="x")).replaced([Kind.SERVICE])[0]
    assert ((), frozenset({ObjectKey("default", "web")})) == (listing.objects, listing.unreadable)


def test_other_kinds_are_told_once_at_info() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n" + service("web")
    with capture_logs() as logs:
        made = catalog(a=text)
        made.load("a", parse(text + service("api")))
    assert [(entry["log_level"], entry["kind"], entry["place"]) for entry in logs] == [
        ("info", "apps/v1 Deployment", "a:1")
    ]


def test_only_this_node_is_delivered() -> None:
    node = "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n"
    listing = catalog(a=node.format("node-0") + node.format("node-1")).replaced([Kind.NODE])[0]
    assert [one.metadata.name for one in listing.objects] == ["node-0"]


# --- the directory -----------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "manifests"
    made.mkdir()
    return made


@pytest.fixture
def follow(directory: Path) -> Iterator[Callable[[], RecordingSink]]:
    sources = []

    def start() -> RecordingSink:
        sink = RecordingSink()
        source = ManifestSource(directory, "node-0")
        sources.append(source)
        source.start(sink)
        if directory.exists():
            sink.wait_until(lambda: all(sink.listings(kind) for kind in source.kinds))
        return sink

    yield start
    for source in sources:
        source.stop()


Follow = Callable[[], RecordingSink]


def replace_by_rename(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.swp")
    temporary.write_text(text)
    temporary.rename(path)


def test_an_empty_directory_is_delivered_as_such(follow: Follow) -> None:
    sink = follow()
    assert [Replaced(kind, ()) for kind in sorted(Kind)] == sink.events


def test_files_are_chosen_by_name(directory: Path, follow: Follow) -> None:
    for n, name in enumerate(["a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~"]):
        text = service(f"s{n}")
        if name == "c.json":
            text = (
                '{"apiVersion":"v1","kind":"Service","metadata":{"name":"s2"},'
                '"spec":{"clusterIP":"10.96.0.9"}}'
            )
        (directory / name).write_text(text)
    (directory / "sub.yaml").mkdir()
    (directory / "sub.yaml" / "g.yaml").write_text(service("s9"))
    assert {"s0", "s1", "s2"} == follow().names()


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(Path.write_text, id="in place"),
        pytest.param(replace_by_rename, id="temporary file and rename"),
    ],
)
def test_a_written_file_is_read(
    directory: Path, follow: Follow, write: Callable[[Path, str], object]
) -> None:
    path = directory / "a.yaml"
    path.write_text(service("old"))
    sink = follow()
    write(path, service("new"))
    sink.wait_until(lambda: {"new"} == sink.names())
    write(directory / "b.yaml", service("more"))
    sink.wait_until(lambda: {"new", "more"} == sink.names())
    assert sink.listings() == 1


def test_a_file_being_written_is_not_read_before_its_end(directory: Path, follow: Follow) -> None:
    sink = follow()
    with (directory / "a.yaml").open("w") as file:
        file.write(service("first"))
        file.flush()
        (directory / "b.yaml").write_text(service("other"))
        sink.wait_until(lambda: "other" in sink.names())
        assert {"other"} == sink.names()
        file.write(service("second"))
    sink.wait_until(lambda: {"first", "second", "other"} == sink.names())


def test_an_endpoint_taken_out_of_a_file_is_one_put(directory: Path, follow: Follow) -> None:
    path = directory / "a.yaml"
    path.write_text(service("web") + slice_("10.0.0.1", "10.0.0.2"))
    sink = follow()
    before = len(sink.events)
    path.write_text(service("web") + slice_("10.0.0.1"))
    sink.wait_until(lambda: len(sink.events) > before)
    (event,) = sink.events[before:]
    assert isinstance(event, Put)
    assert isinstance(event.object, EndpointSlice)
    assert len(event.object.endpoints or ()) == 1


@pytest.mark.parametrize("how", ["delete", "move out", "rename to another suffix"])
def test_a_file_that_leaves_takes_its_objects_along(
    directory: Path, follow: Follow, how: str
) -> None:
    (directory / "a.yaml").write_text(service("a"))
    (directory / "b.yaml").write_text(service("b"))
    sink = follow()
    match how:
        case "delete":
            (directory / "a.yaml").unlink()
        case "move out":
            (directory / "a.yaml").rename(directory.parent / "a.yaml")
        case _:
            (directory / "a.yaml").rename(directory / "a.off")
    sink.wait_until(lambda: {"b"} == sink.names())
    assert Gone(Kind.SERVICE, ObjectKey("default", "a")) == sink.events[-1]


def test_a_renamed_file_changes_nothing_in_the_end(directory: Path, follow: Follow) -> None:
    (directory / "a.yaml").write_text(service("a"))
    sink = follow()
    (directory / "a.yaml").rename(directory / "z.yaml")
    (directory / "b.yaml").write_text(service("b"))
    sink.wait_until(lambda: {"a", "b"} == sink.names())


def test_links_into_the_directory_are_read(directory: Path, follow: Follow) -> None:
    outside = directory.parent / "outside.yaml"
    outside.write_text(service("soft"))
    hard = directory.parent / "hard.yaml"
    hard.write_text(service("hard"))
    sink = follow()
    (directory / "soft.yaml").symlink_to(outside)
    os.link(hard, directory / "hard.yaml")
    sink.wait_until(lambda: {"soft", "hard"} == sink.names())


def test_a_config_map_volume_is_followed_through_its_swap(directory: Path, follow: Follow) -> None:
    """As kubelet's AtomicWriter does it: files are links through ..data, which is replaced."""
    for version, content in (("..v1", service("a")), ("..v2", service("a", port=81))):
        (directory / version).mkdir()
        (directory / version / "a.yaml").write_text(content)
    (directory / "..data").symlink_to("..v1")
    (directory / "a.yaml").symlink_to("..data/a.yaml")
    sink = follow()
    before = len(sink.events)
    (directory / "..v2" / "b.yaml").write_text(service("b"))
    (directory / "..data_tmp").symlink_to("..v2")
    (directory / "..data_tmp").rename(directory / "..data")
    (directory / "b.yaml").symlink_to("..data/b.yaml")
    shutil.rmtree(directory / "..v1")
    sink.wait_until(lambda: {"a", "b"} == sink.names())
    assert [Put, Put] == [type(event) for event in sink.events[before:]]


def test_a_broken_file_stays_as_it_was_until_it_is_mended(directory: Path, follow: Follow) -> None:
    (directory / "a.yaml").write_text(service("a"))
    sink = follow()
    (directory / "a.yaml").write_text("kind: [")
    (directory / "b.yaml").write_text(service("b"))
    sink.wait_until(lambda: "b" in sink.names())
    assert {"a", "b"} == sink.names()
    (directory / "a.yaml").write_text(service("c"))
    sink.wait_until(lambda: {"b", "c"} == sink.names())


def test_bytes_that_are_no_text_are_a_broken_file(directory: Path, follow: Follow) -> None:
    (directory / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (directory / "b.yaml").write_text(service("b"))
    assert {"b"} == follow().names()


def test_a_directory_that_moves_away_keeps_everything_until_it_is_back(
    directory: Path, follow: Follow
) -> None:
    (directory / "a.yaml").write_text(service("a"))
    (directory / "b.yaml").write_text(service("b"))
    sink = follow()
    other = directory.with_name("other")
    other.mkdir()
    (other / "b.yaml").write_text(service("b"))
    (other / "c.yaml").write_text(service("c"))
    directory.rename(directory.with_name("away"))
    assert {"a", "b"} == sink.names()
    other.rename(directory)
    sink.wait_until(lambda: {"b", "c"} == sink.names())
    (directory / "d.yaml").write_text(service("d"))
    sink.wait_until(lambda: {"b", "c", "d"} == sink.names())
    assert sink.listings() == 1


def test_a_removed_and_recreated_directory_is_followed_again(
    directory: Path, follow: Follow
) -> None:
    (directory / "a.yaml").write_text(service("a"))
    sink = follow()
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "b.yaml").write_text(service("b"))
    sink.wait_until(lambda: {"b"} == sink.names())


def test_a_redirected_link_to_the_directory_is_noticed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(service(name))
    (tmp_path / "current").symlink_to("one")
    source, sink = ManifestSource(tmp_path / "current", "node-0"), RecordingSink()
    source.start(sink)
    sink.wait_until(lambda: {"one"} == sink.names())
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "current")
    sink.wait_until(lambda: {"two"} == sink.names())
    source.stop()


def test_a_directory_that_comes_later_is_waited_for(directory: Path, follow: Follow) -> None:
    directory.rmdir()
    sink = follow()
    prepared = directory.with_name("prepared")
    prepared.mkdir()
    (prepared / "a.yaml").write_text(service("a"))
    assert sink.events == []
    prepared.rename(directory)
    sink.wait_until(lambda: all(sink.listings(kind) for kind in Kind))
    assert {"a"} == sink.names()


def test_an_overflowing_queue_leads_to_a_full_look(
    directory: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "a.yaml").write_text(service("a"))
    sink = follow()
    read = INotify.read

    def overflow(self: INotify, *args: object, **more: object) -> list[Notice]:
        read(self, timeout=0)
        return [Notice(-1, flags.Q_OVERFLOW, 0, "")]

    monkeypatch.setattr(INotify, "read", overflow)
    (directory / "a.yaml").unlink()
    (directory / "b.yaml").write_text(service("b"))
    sink.wait_until(lambda: {"b"} == sink.names())


def test_a_truncated_file_keeps_its_objects_until_it_is_deleted(
    directory: Path, follow: Follow
) -> None:
    (directory / "a.yaml").write_text(service("a"))
    sink = follow()
    (directory / "a.yaml").write_text("")
    (directory / "b.yaml").write_text(service("b"))
    sink.wait_until(lambda: "b" in sink.names())
    assert {"a", "b"} == sink.names()
    (directory / "a.yaml").unlink()
    sink.wait_until(lambda: {"b"} == sink.names())


@pytest.mark.parametrize(
    ("method", "number"),
    [
        pytest.param("__init__", errno.EMFILE, id="instances"),
        pytest.param("add_watch", errno.ENOSPC, id="watches"),
    ],
)
def test_without_inotify_the_directory_is_looked_at(
    directory: Path,
    follow: Follow,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    number: int,
) -> None:
    refusals = Semaphore(0)
    back = ThreadEvent()
    watched_again = manifests.log.info

    def refuse(*_: object, **more: object) -> None:
        refusals.release()
        raise OSError(number, os.strerror(number))

    def told_to(event: str, **fields: object) -> None:
        watched_again(event, **fields)
        if event == "manifest directory watched again":
            back.set()

    monkeypatch.setattr(manifests, "CHECK_MILLISECONDS", 20)
    monkeypatch.setattr(manifests, "RETRY_INOTIFY_SECONDS", 0.1)
    (directory / "a.yaml").write_text(service("a"))
    with capture_logs() as logs:
        with monkeypatch.context() as patch:
            patch.setattr(INotify, method, refuse)
            sink = follow()
            (directory / "b.yaml").write_text(service("b"))
            sink.wait_until(lambda: {"a", "b"} == sink.names())
            (directory / "a.yaml").write_text(service("long-name"))
            sink.wait_until(lambda: {"long-name", "b"} == sink.names())
            (directory / "b.yaml").unlink()
            sink.wait_until(lambda: {"long-name"} == sink.names())
            for _ in range(3):  # tries in vain, which are not told
                assert refusals.acquire(timeout=60)
            monkeypatch.setattr(manifests.log, "info", told_to, raising=False)
        assert back.wait(60)
    (told,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "fs.inotify.max_user_instances" in told["reason"]
    assert "fs.inotify.max_user_watches" in told["reason"]
    (directory / "c.yaml").write_text(service("c"))
    sink.wait_until(lambda: {"long-name", "c"} == sink.names())


def test_a_look_does_not_read_what_is_still_being_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ManifestSource(directory, "node-0")
    read: list[str] = []
    monkeypatch.setattr(source, "_read", read.append)
    path = directory / "a.yaml"
    for text in ("a: 1", "a: 12", "a: 123"):
        path.write_text(text)
        source._scan(frozenset(), settled=True)
        assert read == []
    source._scan(frozenset(), settled=True)
    assert read == ["a.yaml"]


def test_stop_ends_a_source_that_waits(directory: Path) -> None:
    source = ManifestSource(directory, "node-0")
    source.stop()  # never started: nothing to do
    source.start(RecordingSink())
    source.stop()
    source.stop()
