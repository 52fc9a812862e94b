"""Reads a Dockerfile: the plain instructions that every builder knows, and no others; pure.

What is not understood is an error, never skipped: a step that is not taken here would be taken
by a real builder.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from msgspec import Struct

__all__ = [
    "Copy",
    "DockerfileError",
    "Instruction",
    "Stage",
    "expand",
    "ignored",
    "pairs",
    "parse",
    "parse_copy",
]

_KNOWN = frozenset(
    ["ARG", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "WORKDIR"]
)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class DockerfileError(ValueError):
    """The text is no Dockerfile, or uses what is not understood here; it names the line."""


class Instruction(Struct, frozen=True):
    """One instruction: its word in capitals and the rest, continued lines joined."""

    word: str
    rest: str
    line: int

    def error(self, problem: str) -> DockerfileError:
        return DockerfileError(f"Dockerfile, line {self.line}, {self.word}: {problem}")


class Stage(Struct, frozen=True):
    """What stands between one FROM and the next; `base` is not expanded yet."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]


class Copy(Struct, frozen=True):
    """The arguments of COPY; without *stage* the sources are in the build context."""

    sources: tuple[str, ...]
    target: str
    stage: str = ""


def parse(text: str) -> tuple[tuple[Instruction, ...], tuple[Stage, ...]]:
    """Return the ARGs before the first stage, and the stages in order.

    Raises:
        DockerfileError: an unknown instruction, or one before the first FROM that is no ARG.
    """
    head: list[Instruction] = []
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            stages.append(_stage(instruction, len(stages)))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(last.base, last.name, (*last.instructions, instruction))
        elif instruction.word == "ARG":
            head.append(instruction)
        else:
            raise instruction.error("stands before the first FROM")
    if not stages:
        raise DockerfileError("Dockerfile: there is no FROM")
    return tuple(head), tuple(stages)


def _instructions(text: str) -> Iterator[Instruction]:
    begun = 0
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if not parts:
            begun = number
        parts.append(line.removesuffix("\\").strip(" \t") if parts else line.removesuffix("\\"))
        if not line.endswith("\\"):
            word, _, rest = " ".join(parts).strip().partition(" ")
            instruction = Instruction(word.upper(), rest.strip(), begun)
            if instruction.word not in _KNOWN:
                raise instruction.error(f"not one of {', '.join(sorted(_KNOWN))}")
            yield instruction
            parts = []
    if parts:
        raise DockerfileError(f"Dockerfile, line {begun}: the last line is continued by nothing")


def _stage(instruction: Instruction, number: int) -> Stage:
    match instruction.rest.split():
        case [base]:
            return Stage(base, str(number), ())
        case [base, as_, name] if as_.upper() == "AS":
            return Stage(base, name, ())
    raise instruction.error("want FROM BASE, or FROM BASE AS NAME")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}``; what is not set is empty, as in a builder."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)


def pairs(instruction: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """The KEY=VALUE of ENV and LABEL, unquoted and expanded."""
    found = {}
    for word in shlex.split(instruction.rest):
        key, equals, value = word.partition("=")
        if not equals:
            raise instruction.error(f"{word!r} is no KEY=VALUE")
        found[key] = expand(value, variables)
    return found


def words(instruction: Instruction) -> list[str]:
    """The JSON list of an ENTRYPOINT."""
    try:
        found = json.loads(instruction.rest)
    except ValueError as error:
        raise instruction.error('want ["PROGRAM", ...]: the other form needs a shell') from error
    return [str(word) for word in found]


def parse_copy(instruction: Instruction) -> Copy:
    """Raises DockerfileError for options other than ``--from``."""
    stage = ""
    paths = []
    for word in shlex.split(instruction.rest):
        if word.startswith("--from="):
            stage = word.removeprefix("--from=")
        elif word.startswith("--"):
            raise instruction.error(f"{word.partition('=')[0]} is not understood here")
        else:
            paths.append(word)
    if len(paths) < 2:
        raise instruction.error("want sources and a target")
    *sources, target = paths
    if len(sources) > 1 and not target.endswith("/"):
        raise instruction.error("several sources want a directory, which ends in /")
    return Copy(tuple(sources), target, stage)


def ignored(dockerignore: str) -> Callable[[str], bool]:
    """Return what tells whether a path in the build context (no leading /) is left out.

    Of the patterns that match a path, or a directory above it, the last one decides.
    """
    rules = [
        (line.removeprefix("!").strip("/"), not line.startswith("!"))
        for line in map(str.strip, dockerignore.splitlines())
        if line and not line.startswith("#")
    ]

    def is_ignored(path: str) -> bool:
        verdict = False
        for pattern, leaves_out in rules:
            if _matches(PurePosixPath(path), pattern):
                verdict = leaves_out
        return verdict

    return is_ignored


def _matches(path: PurePosixPath, pattern: str) -> bool:
    anywhere, pattern = pattern.startswith("**/"), pattern.removeprefix("**/")
    depth = pattern.count("/") + 1
    for candidate in (path, *path.parents):
        if not candidate.parts:
            continue
        if anywhere:
            if fnmatchcase("/".join(candidate.parts[-depth:]), pattern):
                return True
        elif len(candidate.parts) == depth and fnmatchcase(str(candidate), pattern):
            return True
    return False
