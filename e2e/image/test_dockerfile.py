"""Reading a Dockerfile: what is understood, and that nothing is skipped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.image.conftest import REPOSITORY
from e2e.image.dockerfile import (
    Copy,
    DockerfileError,
    Instruction,
    expand,
    ignored,
    pairs,
    parse,
    parse_copy,
    words,
)
from e2e.image.roots import RootError
from e2e.image.stages import build, copied


def instruction(text: str) -> Instruction:
    """The only instruction of the only stage."""
    ((found,),) = (stage.instructions for stage in parse(f"FROM x\n{text}\n")[1])
    return found


def test_lines_that_go_on_are_one_instruction() -> None:
    text = "FROM a AS one\n# why\nRUN x; \\\n    # not said to the shell\n\n    y\nFROM one\n"
    head, (one, last) = parse(text)
    assert () == head
    assert ("a", "one") == (one.base, one.name)
    assert (Instruction("RUN", "x;  y", 3),) == one.instructions
    assert ("one", "1", ()) == (last.base, last.name, last.instructions)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("FROM a\nSHELL []\n", "line 2, SHELL", id="unknown instruction"),
        pytest.param("RUN x\n", "before the first FROM", id="no stage yet"),
        pytest.param("ARG x\n", "no FROM", id="no stage"),
        pytest.param("FROM a b\n", "want FROM", id="a FROM that is none"),
        pytest.param("FROM a\nRUN x \\\n", "continued by nothing", id="breaks off"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_it(text: str, named: str) -> None:
    with pytest.raises(DockerfileError, match=named):
        parse(text)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("a b/ c/", Copy(("a", "b/"), "c/")),
        ("--from=build /opt/x /opt/x", Copy(("/opt/x",), "/opt/x", "build")),
    ],
)
def test_copy(rest: str, expected: Copy) -> None:
    assert expected == parse_copy(instruction(f"COPY {rest}"))


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("--chmod=755 a b", "--chmod is not understood"),
        ("a b c", "directory"),
        ("a", "sources and a target"),
    ],
)
def test_a_copy_that_is_not_understood(rest: str, named: str) -> None:
    with pytest.raises(DockerfileError, match=named):
        parse_copy(instruction(f"COPY {rest}"))


def test_an_entrypoint_that_needs_a_shell_is_refused() -> None:
    assert ["/a", "-b"] == words(instruction('ENTRYPOINT ["/a", "-b"]'))
    with pytest.raises(DockerfileError, match="needs a shell"):
        words(instruction("ENTRYPOINT /a -b"))


def test_variables_and_pairs_are_expanded() -> None:
    assert "1-2-" == expand("${A}-$B-$C", {"A": "1", "B": "2"})
    assert {"x": "1 2", "y": ""} == pairs(instruction('LABEL x="$A 2" y='), {"A": "1"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Dockerfile", True),
        ("pykubeproxy", False),
        ("pykubeproxy/model/kinds.py", False),
        ("pykubeproxy/model/__pycache__/kinds.cpython-311.pyc", True),
        ("deploy/daemonset.yaml", True),
        ("deploy/image/sbom.py", False),
        (".git/config", True),
    ],
)
def test_the_context_has_what_the_dockerfile_names_and_no_more(path: str, expected: bool) -> None:
    assert expected is ignored((REPOSITORY / ".dockerignore").read_text())(path)


def test_a_snapshot_of_debian_is_where_packages_come_from_if_asked(
    base: Path, context: Path, room: Path
) -> None:
    subject = copied(base, room / "base-without-apt")
    # In its place, what tells where it would go, and fails.
    apt = subject / "usr/bin/apt-get"
    apt.write_text("#!/bin/sh\ncat /etc/apt/sources.list; ls /etc/apt/sources.list.d; exit 7\n")
    moment = "20261121T000000Z"
    with pytest.raises(RootError, match="exit 7") as error:
        build(context, subject, room / "snapshot", {"DEBIAN_SNAPSHOT": moment}, "system")
    archives = "deb [check-valid-until=no] http://snapshot.debian.org/archive"
    assert [
        f"{archives}/{archive}/{moment} {suite} main"
        for archive, suite in [
            ("debian", "bookworm"),
            ("debian", "bookworm-updates"),
            ("debian-security", "bookworm-security"),
        ]
    ] == str(error.value).splitlines()[1:]
