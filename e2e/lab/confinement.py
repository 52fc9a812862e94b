"""A container's walls around a program: a read-only system, few capabilities, and no way to more.

What a runtime does with ``readOnlyRootFilesystem``, ``capabilities`` and
``allowPrivilegeEscalation: false``, with the tools that every Linux has: a mount namespace of its
own in which all is read-only but the paths named, and exactly the capabilities named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["confined"]

# /proc stays as it is but for /proc/sys, as with every runtime; a mount that cannot be made
# read-only here (of another owner) is not one that this program could write either. /run is empty,
# as in an image, but for what of it is named.
_WALLS = """\
set -eu
privileged=$1
writable=$2
readable=$3
shift 3
run=$(mktemp -d)
mount -n -t tmpfs tmpfs "$run"
for path in $writable $readable; do
    target=$path
    case "$path" in
    /run/*)
        target=$run/${path#/run/}
        mkdir -p "${target%/*}"
        if [ -d "$path" ]; then mkdir "$target"; else touch "$target"; fi
        ;;
    esac
    mount --bind "$path" "$target"
done
mount -n --move "$run" /run
rmdir "$run"
kept="/ /proc /dev $writable"
[ "$privileged" ] && kept="$kept /proc/sys /sys"
while read -r _ _ _ _ target _; do
    case " $kept " in *" $target "*) continue ;; esac
    mount -o remount,bind,ro "$target" 2>/dev/null || true
done < /proc/self/mountinfo
if [ ! "$privileged" ]; then
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
fi
mount -o remount,bind,ro / 2>/dev/null || { mount --bind / /; mount -o remount,bind,ro /; }
exec "$@"
"""


def confined(
    argv: Sequence[str],
    capabilities: Iterable[str] | None,
    writable: Iterable[Path],
    readable: Iterable[Path] = (),
) -> list[str]:
    """*argv* as root with only *capabilities* (``NET_ADMIN``), writing only below *writable*.

    With ``None`` for capabilities it is privileged: it has all, and writes /proc/sys and /sys, too.
    *readable* is what it finds in /run besides. The paths must exist, and have no blanks.
    """
    paths = (" ".join(map(str, writable)), " ".join(map(str, readable)))
    namespace = ("unshare", "--mount", "--propagation", "private", "--")
    if capabilities is None:
        return [*namespace, *("sh", "-c", _WALLS, "walls", "yes", *paths), *argv]
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    limits = ("setpriv", "--no-new-privs", f"--bounding-set={bounds}", "--inh-caps=-all", "--")
    return [*namespace, *("sh", "-c", _WALLS, "walls", "", *paths), *limits, *argv]
