"""Effects on virtual and real servers: write, read back, drain, look after.

Every message commits on its own, so a refused one is its owner's affair alone. Errors of
net/netfilter/ipvs/ip_vs_ctl.c: a service that exists EEXIST, one that does not ESRCH, a real
server that does not ENOENT, an unknown scheduler ENOENT.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.host.netlink import Netlink, Request, reason
from pykubeproxy.ipvs.audit import Audit
from pykubeproxy.ipvs.drain import Drain, Verdict
from pykubeproxy.ipvs.messages import (
    Dest,
    decode_dest,
    decode_service,
    del_dest,
    del_service,
    get_dests,
    get_services,
    new_dest,
    new_service,
    set_dest,
    set_service,
)
from pykubeproxy.ipvs.objects import Key, Real, Value, Virtual, VirtualConfig, scheduler_flags
from pykubeproxy.model.addresses import contains
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Partly, Transaction, Unknown

__all__ = ["Servers", "ServersObservation"]

log = structlog.get_logger(__name__)

MASQUERADING = 0
ATTEMPTS = 3
"""A request, then the other verb (new or set), then another scheduler."""
RETRY_SECONDS = 5.0
"""How long to leave a kernel alone that cannot be read."""


Item = tuple[ServiceKey, Key]


class Step(Struct):
    """One object to write or remove, and the request for it."""

    owner: ServiceKey
    key: Virtual | Real
    value: Value
    put: bool
    known: bool
    request: Request
    error: int = 0


class ServersObservation:
    """What the kernel holds; real servers are read when somebody asks for them."""

    def __init__(
        self,
        virtuals: Mapping[Virtual, VirtualConfig],
        reals: Callable[[Virtual], Mapping[Real, int]],
        granted: Callable[[VirtualConfig], VirtualConfig],
        is_foreign: Callable[[Virtual], bool],
        ours: dict[Virtual, VirtualConfig],
    ) -> None:
        """*ours* receives the virtual servers that turn out to be as wanted."""
        self._virtuals = virtuals
        self._ours = ours
        self._read = reals
        self._granted = granted
        self._is_foreign = is_foreign
        self._reals: dict[Virtual, Mapping[Real, int]] = {}

    def holds(self, key: Virtual | Real, value: Value) -> bool:
        if isinstance(key, Virtual):
            found = self._virtuals.get(key)
            if found is None or not isinstance(value, VirtualConfig):
                return False
            if found != self._granted(value):
                return False
            self._ours[key] = found
            return True
        return self.reals(key.virtual).get(key) == value

    def strays(self, wanted: set[Key]) -> dict[Key, Value]:
        found: dict[Key, Value] = {}
        for virtual, config in self._virtuals.items():
            if virtual in wanted:
                reals = self.reals(virtual).items()
                found.update((real, weight) for real, weight in reals if real not in wanted)
            elif not self._is_foreign(virtual):
                found[virtual] = config
        return found

    def reals(self, virtual: Virtual) -> Mapping[Real, int]:
        if virtual not in self._virtuals:
            return {}
        known = self._reals.get(virtual)
        if known is None:
            known = self._reals[virtual] = self._read(virtual)
        return known


class Servers:
    """The virtual servers of one family. Not safe for several threads.

    *channel* writes, *reader* reads (a generic netlink socket each; many small dumps want small
    reads). Virtual servers inside *exclude_cidrs* that nobody wants are somebody else's.
    """

    def __init__(
        self,
        family: Family,
        channel: Netlink,
        reader: Netlink,
        family_id: Callable[[], int],
        default_scheduler: str,
        exclude_cidrs: Sequence[str],
        drain: Drain,
        clock: Callable[[], float],
    ) -> None:
        self._family = family
        self._channel = channel
        self._reader = reader
        self._ask_id = family_id
        self._id = family_id()
        self._default_scheduler = default_scheduler
        self._exclude_cidrs = [c for c in exclude_cidrs if (":" in c) == (family is Family.IPV6)]
        self._drain = drain
        self._clock = clock
        self._audit = Audit()
        self._missing: set[str] = set()
        self._virtuals: dict[Virtual, VirtualConfig] = {}
        self._touched: set[Virtual] = set()

    # --- reading ---

    def observe(self) -> ServersObservation:
        """Raises HostError."""
        try:
            family_id = self._ask_id()
            if family_id != self._id:
                self._id = family_id
                self._missing.clear()
            virtuals = self._services(self._channel)
        except OSError as error:
            raise HostError(f"listing virtual servers: {reason(error)}") from error
        self._virtuals = {v: c for v, c in virtuals.items() if not self._is_foreign(v)}
        self._audit.forget()
        return ServersObservation(
            virtuals, self._found, self._granted, self._is_foreign, self._virtuals
        )

    def look(self, channel: Netlink | None = None) -> Callable[[], bool]:
        """Prepare for a look at all virtual servers, made by calling the result, on any thread.

        It tells whether they are as they were written, and no others of ours are there; what is
        written meanwhile does not count. On another thread it needs a *channel* of its own.
        """
        expected = dict(self._virtuals)
        touched = self._touched = set()

        def surprises() -> set[Virtual]:
            present = self._services(channel or self._channel)
            surplus = {v for v in present.keys() - expected.keys() if not self._is_foreign(v)}
            changed = {v for v, config in expected.items() if present.get(v) != config}
            return (surplus | changed) - touched

        def intact() -> bool:
            try:
                found = surprises()
                # A dump may pass over one while others are deleted: what is seen twice counts.
                return not (found and found & surprises())
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return False  # the module was unloaded, and they are gone with it
                log.warning("virtual servers not read", reason=reason(error))
                return True

        return intact

    def _services(self, channel: Netlink) -> dict[Virtual, VirtualConfig]:
        """Raises OSError; ENOENT: the kernel's IPVS is gone, or loaded anew."""
        found = {}
        ipv6 = self._family is Family.IPV6
        for data, start, end in channel.dump(*get_services(self._id)):
            service = decode_service(data, start, end)
            if service is not None and (":" in service[0].address) is ipv6:
                found[service[0]] = service[1]
        return found

    def _dests(self, virtual: Virtual) -> dict[Real, Dest]:
        try:
            dests = [
                decode_dest(data, start, end)
                for data, start, end in self._reader.dump(*get_dests(self._id, virtual))
            ]
        except OSError as error:
            raise HostError(f"listing real servers of {virtual}: {reason(error)}") from error
        return {Real(virtual, dest.address, dest.port): dest for dest in dests}

    def _found(self, virtual: Virtual) -> dict[Real, int]:
        reals = self._settled(virtual)
        self._audit.expect(virtual, reals)
        return reals

    def _settled(self, virtual: Virtual) -> dict[Real, int]:
        """Real servers and weights, without those that drain. One of another kind counts as -1."""
        found = {}
        for real, dest in self._dests(virtual).items():
            if dest.weight:
                # It takes new connections: the request that was to end that never arrived.
                self._drain.leave(real)
            if real not in self._drain:
                found[real] = dest.weight if dest.method == MASQUERADING else -1
        return found

    def _granted(self, config: VirtualConfig) -> VirtualConfig:
        """What a virtual server gets instead of *config* on this kernel."""
        if config.scheduler not in self._missing:
            return config
        scheduler = self._default_scheduler
        others = config.flags & ~scheduler_flags(config.scheduler)
        flags = others | scheduler_flags(scheduler)
        return VirtualConfig(scheduler, flags, config.timeout_seconds)

    def _is_foreign(self, virtual: Virtual) -> bool:
        return any(contains(cidr, virtual.address) for cidr in self._exclude_cidrs)

    # --- writing ---

    def apply(self, transaction: Transaction[Key, Value]) -> Outcome:
        """Write puts, then drops; an owner with a refused message is in `Partly.refused`."""
        try:
            steps = list(self._steps(transaction))
            # Before it is done: somebody may be looking.
            self._touched.update(step.key for step in steps if isinstance(step.key, Virtual))
            sent = self._send(steps)
        except (OSError, HostError) as error:
            self._audit.forget()
            return Unknown(f"writing virtual servers: {reason(error)}")
        failed = [step for step in steps if step.error]
        lost = self._lost(failed)
        if lost:
            self._audit.forget()
            return Unknown(f"{lost} is gone, somebody removed it")
        if any(step.error == errno.ENOENT for step in failed) and self._is_gone():
            return Unknown("the kernel's IPVS module was unloaded")
        notes = tuple(dict.fromkeys(self._notes(steps)))
        applied = Applied(len(sent), sum(len(body) for _, _, body in sent), len(sent), notes)
        landed = transaction.without(_not_done(transaction, failed)) if failed else transaction
        for change in landed.changes:
            self._note(change)
        if not failed:
            return applied
        refused: dict[ServiceKey, str] = {}
        for step in failed:
            refused.setdefault(step.owner, f"{step.key}: {self._reason(step)}")
            if isinstance(step.key, Real) and not step.put:
                self._drain.leave(step.key)
        return Partly(landed, refused, applied)

    def _steps(self, transaction: Transaction[Key, Value]) -> Iterator[Step]:
        for change in transaction.changes:
            for key, value in change.put.items():
                if isinstance(key, Virtual | Real):
                    known = key in change.old or (isinstance(key, Real) and key in self._drain)
                    yield Step(change.owner, key, value, True, known, self._put(key, value, known))
        counts: dict[Virtual, dict[Real, Dest]] = {}
        for change in transaction.changes:
            for key, value in change.drop.items():
                match key:
                    case Virtual():
                        request = del_service(self._id, key)
                        yield Step(change.owner, key, value, False, True, request)
                    case Real() if key.virtual not in change.drop:
                        removal = self._removal(key, counts)
                        if removal is not None:
                            yield Step(change.owner, key, value, False, True, removal)
                    case _:
                        pass  # goes with its virtual server

    def _put(self, key: Virtual | Real, value: Value, known: bool) -> Request:
        if isinstance(key, Virtual):
            assert isinstance(value, VirtualConfig)
            return (set_service if known else new_service)(self._id, key, self._granted(value))
        assert isinstance(value, int)
        return (set_dest if known else new_dest)(self._id, key, value)

    def _removal(self, real: Real, counts: dict[Virtual, dict[Real, Dest]]) -> Request | None:
        """How to remove a real server: at once, or by weight 0 if it has connections."""
        if real.virtual.protocol is not Protocol.TCP:
            return del_dest(self._id, real)
        if real.virtual not in counts:
            counts[real.virtual] = self._dests(real.virtual)
        dest = counts[real.virtual].get(real)
        if dest is None:
            return None
        if not self._drain.enter(real, dest.active + dest.inactive, self._clock()):
            return del_dest(self._id, real)
        return set_dest(self._id, real, 0) if dest.weight else None

    def _send(self, steps: Sequence[Step]) -> list[Request]:
        """Send until all are done or refused for good; returns what was sent."""
        sent: list[Request] = []
        waiting = list(steps)
        for _ in range(ATTEMPTS):
            requests = [step.request for step in waiting]
            sent += requests
            for step, error in zip(waiting, self._channel.batch(requests), strict=True):
                step.error = 0 if _is_done(step, error) else error
            waiting = self._again([step for step in waiting if step.error])
            if not waiting:
                break
        return sent

    def _again(self, refused: Sequence[Step]) -> list[Step]:
        """Those of *refused* that can be had in another way, with the new requests."""
        again: list[Step] = []
        coming: set[Virtual] = set()
        for step in refused:
            if not step.put:
                continue
            key, value = step.key, step.value
            if isinstance(key, Virtual):
                assert isinstance(value, VirtualConfig)
                if step.error == errno.ENOENT and value.scheduler != self._default_scheduler:
                    self._missing.add(value.scheduler)
                elif step.error == errno.EEXIST:
                    step.known = True
                else:
                    continue
                coming.add(key)
            elif step.error in (errno.EEXIST, errno.ENOENT):
                step.known = step.error == errno.EEXIST
            elif step.error != errno.ESRCH or key.virtual not in coming:
                continue
            step.request = self._put(key, value, step.known)
            again.append(step)
        return again

    def _notes(self, steps: Iterable[Step]) -> Iterator[tuple[ServiceKey, str]]:
        for step in steps:
            value = step.value
            if step.put and isinstance(value, VirtualConfig) and self._granted(value) != value:
                yield (
                    step.owner,
                    f"IPVS scheduler {value.scheduler!r} is not in this kernel (modprobe "
                    f"ip_vs_{value.scheduler}); {self._default_scheduler} is used instead",
                )

    def _lost(self, failed: Sequence[Step]) -> Virtual | None:
        """A virtual server that should be there and is not, though nobody refused it."""
        refused = {step.key for step in failed if step.error != errno.ESRCH}
        for step in failed:
            virtual = step.key if isinstance(step.key, Virtual) else step.key.virtual
            if step.error == errno.ESRCH and virtual not in refused:
                return virtual
        return None

    def _note(self, change: Change[Key, Value]) -> None:
        """Remember what was committed."""
        self._audit.note(change)
        for key, value in change.put.items():
            if isinstance(key, Virtual):
                assert isinstance(value, VirtualConfig)
                self._virtuals[key] = self._granted(value)
            elif isinstance(key, Real):
                self._drain.leave(key)
        for key in change.drop:
            if isinstance(key, Virtual):
                self._virtuals.pop(key, None)
                self._drain.leave_all(key)

    def _reason(self, step: Step) -> str:
        value = step.value
        if step.error == errno.ENOENT and isinstance(value, VirtualConfig):
            scheduler = self._granted(value).scheduler
            return f"scheduler {scheduler!r} is not in this kernel (modprobe ip_vs_{scheduler})"
        return reason(OSError(step.error, os.strerror(step.error)))

    def _is_gone(self) -> bool:
        try:
            self._services(self._channel)
        except OSError as error:
            return error.errno == errno.ENOENT
        return False

    # --- looking after ---

    def tend(self, now: float, suspect: Callable[[], None]) -> float | None:
        """Delete what has drained and look at some real servers; call *suspect* about a surprise.

        Returns when there is more to do.
        """
        try:
            self._finish_draining(now)
            for virtual in self._audit.take(now):
                if not self._audit.agrees(virtual, self._settled(virtual)):
                    log.warning("real servers changed by somebody else", server=str(virtual))
                    self._audit.forget()
                    suspect()
                    break
        except (OSError, HostError) as error:
            log.warning("real servers not looked at", reason=reason(error))
            return now + RETRY_SECONDS
        moments = (self._drain.next_look(), self._audit.next_at(now))
        return min((m for m in moments if m is not None), default=None)

    def _finish_draining(self, now: float) -> None:
        done: list[Real] = []
        for virtual, reals in self._drain.due(now).items():
            dests = self._dests(virtual)
            for real in reals:
                dest = dests.get(real)
                count = None if dest is None else dest.active + dest.inactive
                if self._drain.judge(real, count, now) is Verdict.DELETE:
                    done.append(real)
        errors = self._channel.batch([del_dest(self._id, real) for real in done])
        for real, error in zip(done, errors, strict=True):
            if error in (0, errno.ENOENT, errno.ESRCH):
                self._drain.leave(real)
                log.debug("real server drained", server=str(real))
            else:
                log.warning("real server not deleted", server=str(real), reason=os.strerror(error))


def _is_done(step: Step, error: int) -> bool:
    """Tell whether the kernel is as *step* wants it; what is gone already need not go."""
    return error == 0 or (not step.put and error in (errno.ENOENT, errno.ESRCH))


def _not_done(transaction: Transaction[Key, Value], failed: Iterable[Step]) -> set[Item]:
    """What *failed* stands for; real servers of a virtual server that did not go stay as well."""
    found: set[Item] = {(step.owner, step.key) for step in failed}
    for change in transaction.changes:
        for key in change.drop:
            if isinstance(key, Real) and (change.owner, key.virtual) in found:
                found.add((change.owner, key))
    return found
