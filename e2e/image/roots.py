"""Root file systems: the stand-in for the base image, and programs inside of one.

The stand-in is what debian:bookworm-slim is made of: debootstrap's minimal set without manuals,
translations and caches. It also gets this machine's ways to the package mirrors (proxy,
certificate authorities, name service), which a real builder brings along by itself; they are part
of the base and not of our layers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PATH", "RELEASE", "RootError", "inside", "make_base", "network_environment"]

RELEASE = "bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MIRROR = "http://deb.debian.org/debian"
_SECURITY = "http://deb.debian.org/debian-security"
_AUTHORITIES = "/usr/local/share/ca-certificates"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_LENT = Path("/etc/machine-ca.crt")

# As in the official slim images (debuerreotype: .slimify-excludes, .dpkg-speedup).
_SLIM = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
_DPKG = "".join(f"path-exclude /usr/share/{name}/*\n" for name in _SLIM)
_DPKG += "path-include /usr/share/doc/*/copyright\n"
_DPKG += "force-unsafe-io\n"
_APT = """\
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""

# What a container runtime mounts. Where a machine forbids a new proc, its own is lent.
_MOUNTS = """\
set -e
root=$1
shift
mount --bind "$root" "$root"
[ "$1" = rw ] || mount -o remount,bind,ro "$root"
shift
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$1"
    shift
done
shift
exec "$@"
"""


class RootError(RuntimeError):
    """A program failed that builds a root file system; the text has what it said."""


def inside(
    root: Path,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    workdir: str = "/",
    writable: Sequence[Path] | None = None,
) -> list[str]:
    """*argv*, to be run in *root* as if it were a container: same network, own mounts.

    With *writable*, everything in *root* is read-only but for these files and directories of this
    machine, which appear there under their own names (and must have a place there).
    """
    mounts = ["rw"] if writable is None else ["ro", *map(str, writable)]
    variables = [f"{name}={value}" for name, value in {"PATH": PATH, **environment}.items()]
    # env and chroot are this machine's: nothing in the root but argv is needed.
    enter = ["env", "-i", *variables, "chroot", str(root), *argv]
    if workdir != "/":
        enter = [*enter[: -len(argv)], "env", f"--chdir={workdir}", *argv]
    return ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh", str(root), *mounts, "--", *enter]


def make_base(root: Path) -> None:
    """Make the stand-in at *root*, half a minute.

    Raises:
        RootError: debootstrap is missing or reaches no mirror.
    """
    mirror, security = _mirrors()
    _run(["debootstrap", "--variant=minbase", RELEASE, str(root), mirror])
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(_DPKG)
    (root / "etc/apt/apt.conf.d/docker").write_text(_APT)
    for name in _SLIM:
        for path in sorted((root / "usr/share" / name).rglob("*"), reverse=True):
            if path.is_symlink() or (path.is_file() and path.name != "copyright"):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    for directory in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
        shutil.rmtree(root / directory)
        (root / directory).mkdir()
    for path in (root / "var/cache/apt").glob("*.bin"):
        path.unlink()
    (root / "etc/apt/sources.list").write_text(
        f"deb {mirror} {RELEASE} main\n"
        f"deb {mirror} {RELEASE}-updates main\n"
        f"deb {security} {RELEASE}-security main\n"
    )
    _lend_network(root)


def _lend_network(root: Path) -> None:
    settings = _output(["apt-config", "dump"]).splitlines()
    lent = [line for line in settings if line.startswith("Acquire::http")]
    (root / "etc/apt/apt.conf.d/machine").write_text("\n".join(lent) + "\n")
    for name in ("etc/resolv.conf", "etc/hosts"):
        (root / name).unlink(missing_ok=True)
        shutil.copyfile(f"/{name}", root / name)
    if Path(_AUTHORITIES).is_dir():
        shutil.copytree(_AUTHORITIES, root / _AUTHORITIES[1:], dirs_exist_ok=True)
    bundle = Path(os.environ.get("SSL_CERT_FILE", _BUNDLE))
    if bundle.is_file():
        shutil.copyfile(bundle, root / _LENT.relative_to("/"))


def network_environment() -> dict[str, str]:
    """What `make_base` cannot put into files: this machine's proxies and package index."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name.lower() in ("http_proxy", "https_proxy", "no_proxy")
    }
    listed = _output([sys.executable, "-m", "pip", "config", "list"])
    for line in listed.splitlines():
        setting, _, value = line.partition("=")
        section, _, name = setting.partition(".")
        if section in ("global", ":env:", "install") and name in ("index-url", "trusted-host"):
            found[f"PIP_{name.upper().replace('-', '_')}"] = value.strip("'\"")
    if Path(os.environ.get("SSL_CERT_FILE", _BUNDLE)).is_file():
        found["PIP_CERT"] = str(_LENT)
    return found


def _mirrors() -> tuple[str, str]:
    """Where this machine takes Debian from, if it takes this release; else the usual place."""
    mirror, security = _MIRROR, _SECURITY
    listed = _output(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"])
    for line in listed.splitlines():
        uri, _, release = line.partition(" ")
        if release == RELEASE and uri.rstrip("/").endswith("debian"):
            mirror = uri.rstrip("/")
        elif release == f"{RELEASE}-security":
            security = uri.rstrip("/")
    return mirror, security


def _output(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError as error:
        raise RootError(f"{argv[0]} is not installed: apt-get install {argv[0]}") from error
    if done.returncode:
        raise RootError(f"{' '.join(argv)}: exit {done.returncode}:\n{done.stdout[-4000:]}")
