"""What kube-proxy sets on a node besides rules: the size of conntrack, its timeouts, OOM score."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from pykubeproxy.config import ConntrackConfig
from pykubeproxy.host import sysctls
from pykubeproxy.host.sysctls import Parameter, Refusal

__all__ = [
    "UNTUNED",
    "adjust_oom_score",
    "conntrack_max",
    "conntrack_parameters",
    "count_cpus",
    "untuned_note",
]

log = structlog.get_logger(__name__)

MODULE = "nf_conntrack"
MAX = "net/netfilter/nf_conntrack_max"
HASH_SIZE = "/sys/module/nf_conntrack/parameters/hashsize"
LARGEST_MAX = 1 << 20
"""What the number of CPUs may raise the maximum to; only a configured minimum goes beyond."""
ENTRIES_PER_BUCKET = 4

UNTUNED = "connections are tracked with the values found"
"""What follows where none of `conntrack_parameters` can be set."""

OOM_SCORE = Path("/proc/self/oom_score_adj")
OOM_TRIES = 2
OOM_PAUSE_SECONDS = 0.1

_SIZES_UNSET = ConntrackConfig()


def conntrack_parameters(config: ConntrackConfig, cpus: int) -> list[Parameter]:
    """Return the kernel parameters that *config* asks for on a node with *cpus*, in order.

    The table's size belongs to the machine: outside the initial network namespace (a node that is
    itself a container) the kernel lets nobody change it. There the default sizes are left out with
    a notice; sizes that somebody chose are asked for, and will be refused.

    All of it is tuning: a node that has other values can be served.
    """
    wanted = []
    largest = conntrack_max(config, cpus)
    if largest > 0 and not _left_to_the_machine(config, largest):
        buckets = largest // ENTRIES_PER_BUCKET
        wanted = [
            Parameter(MAX, largest, MODULE, is_tuning=True),
            Parameter(HASH_SIZE, buckets, MODULE, at_least=True, is_tuning=True),
        ]
    timeouts = {
        "tcp_timeout_established": config.tcp_established_seconds,
        "tcp_timeout_close_wait": config.tcp_close_wait_seconds,
        "tcp_be_liberal": 1 if config.tcp_be_liberal else 0,
        "udp_timeout": config.udp_seconds,
        "udp_timeout_stream": config.udp_stream_seconds,
    }
    wanted += [
        Parameter(f"net/netfilter/nf_conntrack_{name}", int(value), MODULE, is_tuning=True)
        for name, value in timeouts.items()
        if value > 0
    ]
    return wanted


def conntrack_max(config: ConntrackConfig, cpus: int) -> int:
    """Return how many connections the kernel is to follow at most; 0 leaves that to the kernel."""
    if not config.max_per_core:
        return 0
    scaled = min(config.max_per_core * cpus, LARGEST_MAX)
    return max(scaled, config.min)


def untuned_note(refusals: Sequence[Refusal]) -> str:
    """What an Event tells of *refusals*: all of them fit in its note, their commands would not."""
    found = "; ".join(map(str, refusals))
    return f"{UNTUNED}: {found}; a new pod's init container sets them, or commands in the log"


def count_cpus() -> int:
    """Return the hardware threads of this machine, of which a container may use only some."""
    topology = (sysctls.SYS / "devices/system/cpu").glob("cpu[0-9]*/topology/core_id")
    online = sum(_is_online(core_id.parent.parent) for core_id in topology)
    return online or len(os.sched_getaffinity(0))


def adjust_oom_score(score: int, wait: Callable[[float], None] = time.sleep) -> bool:
    """Tell the kernel how gladly to kill this process when memory runs out; return success.

    The programs that it runs inherit that. A failure is only logged.
    """
    reason = ""
    for attempt in range(OOM_TRIES):
        if attempt:
            wait(OOM_PAUSE_SECONDS)
        try:
            if int(OOM_SCORE.read_text(encoding="ascii")) == score:
                return True
            OOM_SCORE.write_text(f"{score}\n", encoding="ascii")
        except PermissionError as error:
            reason = str(error)
            break  # asking again would not help
        except (OSError, ValueError) as error:
            reason = str(error)
        else:
            return True
    log.warning(
        "OOM score not set, the kernel may choose this process when memory runs out; to lower it "
        "takes SYS_RESOURCE, or oomScoreAdj -997, which the kubelet gives to critical pods anyway",
        wanted=score,
        reason=reason,
    )
    return False


def _left_to_the_machine(config: ConntrackConfig, wanted: int) -> bool:
    chosen = (config.max_per_core, config.min) != (_SIZES_UNSET.max_per_core, _SIZES_UNSET.min)
    path = sysctls.ROOT / MAX
    found = sysctls.read(MAX)
    try:
        # Also root may not write it there, and a read-only /proc/sys leaves the mode as it is.
        fixed = not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    except OSError:
        fixed = False
    if chosen or not fixed:
        return False
    log.info(
        "the size of the conntrack table is the machine's and left as it is: this is not its "
        "initial network namespace; conntrack.maxPerCore 0 says so without a look",
        found=found,
        default=wanted,
    )
    return True


def _is_online(cpu: Path) -> bool:
    try:
        return (cpu / "online").read_text(encoding="ascii").strip() != "0"
    except OSError:
        return True  # the first often has no such file: it cannot be switched off
