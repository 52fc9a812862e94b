"""The shell script that is process 1 of a guest. Pure: settings in, text out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["SYSTEM_PATH", "modprobe_script", "process_one"]

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The kernel asks for all others when they are needed; these in one go cost less than one by one.
_MODULES = (
    *("ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_lc", "ip_vs_wlc", "ip_vs_sh", "ip_vs_mh"),
    *("dummy", "veth", "bridge", "sctp", "nf_conntrack_netlink", "nfnetlink_acct"),
    *("iptable_nat", "iptable_filter", "iptable_mangle"),
    *("ip6table_nat", "ip6table_filter", "ip6table_mangle"),
    *("xt_addrtype", "xt_comment", "xt_conntrack", "xt_ipvs", "xt_mark", "xt_multiport", "xt_nat"),
    *("xt_physdev", "xt_recent", "xt_set", "xt_statistic", "xt_tcpudp", "xt_nfacct"),
    *("xt_MASQUERADE", "ipt_REJECT", "ip6t_REJECT"),
    *("ip_set_bitmap_port", "ip_set_hash_ip", "ip_set_hash_ipport", "ip_set_hash_ipportip"),
    *("ip_set_hash_ipportnet", "ip_set_hash_net", "ip_set_list_set"),
)
_SCRIPT = """\
#!/bin/sh
# /dev/tty1 carries the output, /dev/tty2 the Ctrl-C of whoever waits for the command.
export PATH={path}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp {directory}/tmp
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts devpts /dev/pts
ln -sfn /proc/self/fd /dev/fd
ip link set lo up
echo {directory}/bin/modprobe >/proc/sys/kernel/modprobe
{directory}/bin/modprobe -aq {modules}
ulimit -n 65536
(
    stty -F /dev/tty1 raw -echo {size}
    stty -F /dev/tty2 raw -echo isig intr ^C
)
relay=1
{relay}
(
    # A session with a controlling terminal; the shell outlives a Ctrl-C to tell the status.
    cd {cwd} && exec env -i {environment} \\
        setsid -c -w sh -c 'trap : INT; "$@" </dev/null; exit $?' sh {command}
) </dev/tty2 >{output} 2>&1
echo $? >{directory}/status
# Whatever was left running may neither hold the output back nor write on.
for entry in /proc/[0-9]*; do
    case ${{entry#/proc/}} in 1 | $relay) ;; *) kill -KILL ${{entry#/proc/}} 2>/dev/null ;; esac
done
wait
stty -F /dev/tty1 raw  # returns when all output is written
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
"""
_RELAY = """\
mkfifo /run/output
cat </run/output >/dev/tty1 &
relay=$!"""


def process_one(
    command: Sequence[str],
    *,
    directory: Path,
    cwd: Path,
    environment: Mapping[str, str],
    terminal: tuple[int, int] | None = None,
) -> str:
    """Return the script: it runs *command*, writes its exit status, and powers the guest off.

    *directory* has ``tmp``, which gets a file system of its own, and ``bin/modprobe``; the status
    ends up in its file ``status``. *environment* is all that the command sees. With *terminal*,
    columns and lines, its output is one.
    """
    return _SCRIPT.format(
        path=SYSTEM_PATH,
        directory=shlex.quote(str(directory)),
        modules=" ".join(_MODULES),
        size="" if terminal is None else f"cols {terminal[0]} rows {terminal[1]}",
        relay="" if terminal else _RELAY,
        cwd=shlex.quote(str(cwd)),
        environment=shlex.join(f"{name}={value}" for name, value in environment.items()),
        command=shlex.join(command),
        output="/dev/tty1" if terminal else "/run/output",
    )


def modprobe_script(directory: Path) -> str:
    """Return a ``modprobe`` that finds its modules in ``lib/modules`` of *directory*."""
    return f'#!/bin/sh\nPATH={SYSTEM_PATH} exec modprobe -d {shlex.quote(str(directory))} "$@"\n'
