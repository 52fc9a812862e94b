"""Runs the stages of a Dockerfile in chroots, and tells what came of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from e2e.image import roots
from e2e.image.dockerfile import (
    Instruction,
    Stage,
    expand,
    ignored,
    pairs,
    parse,
    parse_copy,
    words,
)
from e2e.image.roots import RootError

__all__ = ["Image", "Layer", "build", "copied", "fingerprints", "tar_bytes"]

_SECONDS = 600.0
_LENT = frozenset(("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"))


class Layer(Struct, frozen=True):
    """What one instruction added or changed."""

    instruction: str
    paths: tuple[str, ...]
    size_bytes: int
    seconds: float


class Image(Struct):
    """A built stage: its files and what a runtime would read from its configuration."""

    root: Path
    environment: dict[str, str]
    labels: dict[str, str]
    entrypoint: list[str]
    workdir: str
    user: str
    ports: tuple[str, ...]
    layers: list[Layer]
    base_bytes: int

    @property
    def size_bytes(self) -> int:
        """As builders count: the base and every layer."""
        return self.base_bytes + sum(layer.size_bytes for layer in self.layers)

    def command(self, *argv: str, lent: Sequence[Path] = ()) -> list[str]:
        """*argv*, to be run as a container of this image would: its root is read-only.

        The paths *lent* are this machine's, and writable; their places are made first, as a
        container runtime does.
        """
        for path in lent:
            place = self.root / path.relative_to("/")
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        return roots.inside(self.root, argv, environment=self.environment, writable=lent)

    def run(self, *argv: str, lent: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
        """Run a program of the image to its end."""
        command = self.command(*argv, lent=lent)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What ``docker run --read-only IMAGE ARGUMENTS`` does."""
        return self.run(*self.entrypoint, *arguments)

    def copy(self, root: Path) -> Image:
        """The same image in files of its own, which may be changed."""
        return replace(
            self,
            root=copied(self.root, root),
            environment=dict(self.environment),
            labels=dict(self.labels),
            layers=list(self.layers),
        )


def build(
    context: Path,
    base: Path,
    directory: Path,
    arguments: Mapping[str, str] | None = None,
    target: str = "",
) -> Image:
    """Build *context*/Dockerfile up to the stage *target* (the last one) below *directory*.

    Only that stage is kept. Every name that is no stage stands for *base*. *arguments* are those
    of ``--build-arg``.

    Raises:
        DockerfileError: it has what is not understood here.
        RootError: an instruction failed; the text has what it printed.
    """
    head, stages = parse((context / "Dockerfile").read_text())
    given = dict(arguments or {})
    heads: dict[str, str] = {}
    for argument in head:
        name, _, default = argument.rest.partition("=")
        heads[name] = given.get(name, default)
    built: dict[str, Image] = {}
    for stage in stages:
        name = expand(stage.base, heads)
        image = _begin(directory / stage.name, name, built.get(name), base)
        _Builder(context, built, image, heads, given).run(stage)
        built[stage.name] = image
        if stage.name == target:
            break
    image = built.pop(stage.name)
    for other in built.values():
        shutil.rmtree(other.root)
    return image


def _begin(root: Path, name: str, parent: Image | None, base: Path) -> Image:
    if parent is not None:
        return parent.copy(root)
    if name == "scratch":
        root.mkdir(parents=True)
        return Image(root, {}, {}, [], "/", "", (), [], 0)
    copied(base, root)
    size = _size(root, _states(root))
    return Image(root, {}, {}, [], "/", "", (), [], size)


class _Builder:
    """The state of one stage while its instructions are carried out."""

    def __init__(
        self,
        context: Path,
        built: Mapping[str, Image],
        image: Image,
        heads: Mapping[str, str],
        given: Mapping[str, str],
    ) -> None:
        self._context = context
        self._built = built
        self._image = image
        self._heads = heads
        self._given = given
        self._arguments: dict[str, str] = {}
        self._network = roots.network_environment()

    def run(self, stage: Stage) -> None:
        before = _states(self._image.root)
        for instruction in stage.instructions:
            started = time.monotonic()
            self._carry_out(instruction)
            if instruction.word in ("COPY", "RUN", "WORKDIR"):
                after = _states(self._image.root)
                changed = {path: after[path] for path in after if before.get(path) != after[path]}
                self._image.layers.append(
                    Layer(
                        f"{instruction.word} {instruction.rest}",
                        tuple(changed),
                        _size(self._image.root, changed),
                        time.monotonic() - started,
                    )
                )
                before = after

    @property
    def _variables(self) -> dict[str, str]:
        return {**self._arguments, **self._image.environment}

    def _carry_out(self, instruction: Instruction) -> None:
        image = self._image
        match instruction.word:
            case "ARG":
                name, equals, default = instruction.rest.partition("=")
                if name in self._given or equals or name in self._heads:
                    value = self._given.get(name, default or self._heads.get(name, ""))
                    self._arguments[name] = expand(value, self._variables)
            case "ENV":
                image.environment |= pairs(instruction, self._variables)
            case "LABEL":
                image.labels |= pairs(instruction, self._variables)
            case "WORKDIR":
                image.workdir = expand(instruction.rest, self._variables)
                self._place(image.workdir).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = instruction.rest
            case "EXPOSE":
                image.ports += tuple(instruction.rest.split())
            case "ENTRYPOINT":
                image.entrypoint = words(instruction)
            case "RUN":
                self._shell(instruction)
            case "COPY":
                self._copy(instruction)

    def _shell(self, instruction: Instruction) -> None:
        argv = roots.inside(
            self._image.root,
            ["/bin/sh", "-c", instruction.rest],
            environment={"HOME": "/root", **self._network, **self._variables},
            workdir=self._image.workdir,
        )
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if done.returncode:
            said = done.stdout[-6000:]
            raise RootError(str(instruction.error(f"exit {done.returncode}:\n{said}")))

    def _copy(self, instruction: Instruction) -> None:
        copy = parse_copy(instruction)
        target = self._place(expand(copy.target, self._variables))
        if copy.stage:
            source_root = self._built[copy.stage].root
            left_out = None
        else:
            source_root = self._context
            left_out = ignored((self._context / ".dockerignore").read_text())
        for name in copy.sources:
            source = source_root / name.strip("/")
            hidden = left_out is not None and left_out(name) and source.is_file()
            if hidden or not source.exists():
                raise instruction.error(f"there is no {name}, or .dockerignore leaves it out")
            if source.is_dir():
                _copy_tree(source, target, source_root, left_out)
            else:
                place = target / source.name if copy.target.endswith("/") else target
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy_file(source, place)

    def _place(self, path: str) -> Path:
        return self._image.root / os.path.join(self._image.workdir, path).lstrip("/")


def _copy_tree(
    source: Path, target: Path, top: Path, left_out: Callable[[str], bool] | None
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if left_out is not None and left_out(str(path.relative_to(top))):
            continue
        if path.is_dir() and not path.is_symlink():
            _copy_tree(path, target / path.name, top, left_out)
        else:
            _copy_file(path, target / path.name)
    shutil.copystat(source, target)


def _copy_file(source: Path, target: Path) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    os.chown(target, 0, 0, follow_symlinks=False)


def copied(source: Path, target: Path) -> Path:
    """Copy a whole root, devices and all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
    return target


# --- what is in a root --------------------------------------------------------------------------

_State = tuple[int, int, int, int, int]


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below *root* but the files that a runtime lends, as seen from inside."""
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = "/" + os.path.relpath(entry.path, root)
                if name in _LENT:
                    continue
                yield name, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def tar_bytes(root: Path) -> int:
    """How long a tar of *root* is; what some engines call the size of an image."""
    tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    assert tar.stdout is not None
    with tar, tar.stdout as stream:
        return sum(map(len, iter(lambda: stream.read(1 << 20), b"")))


def _states(root: Path) -> dict[str, _State]:
    """What changes when a path is written to, or its owner or mode is changed."""
    return {
        name: (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        for name, found in _walk(root)
        # A file that appears in a directory is its own change.
        if not stat.S_ISDIR(found.st_mode)
    }


def _size(root: Path, states: Mapping[str, _State]) -> int:
    """Bytes of the regular files among *states*, hard links counted once."""
    files = {inode: size for mode, size, _, _, inode in states.values() if stat.S_ISREG(mode)}
    return sum(files.values())


def fingerprints(root: Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, owner, time and content of every path; equal for equal trees."""
    found: dict[str, tuple[object, ...]] = {}
    for name, state in _walk(root):
        path = root / name.lstrip("/")
        content = ""
        if stat.S_ISLNK(state.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(state.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        # The time of a directory is that of its last new entry, whoever made it.
        when = 0 if stat.S_ISDIR(state.st_mode) else int(state.st_mtime)
        found[name] = (oct(state.st_mode), state.st_uid, state.st_gid, when, content)
    return found
