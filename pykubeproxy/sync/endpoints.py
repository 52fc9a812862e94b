"""From EndpointSlices to candidates per port: merging, duplicates, conditions and their defaults.

Which of the candidates get traffic is decided in `pykubeproxy.sync.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pykubeproxy.model.addresses import canonical_ip
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import EndpointSlice, Hints, SliceEndpoint
from pykubeproxy.model.route import Endpoint

__all__ = ["Candidate", "Candidates", "PortName", "candidates_by_port"]

PortName = tuple[str, Protocol]


class Candidate(Struct, frozen=True, gc=False):
    """An endpoint with its conditions made definite, before any policy.

    ``text`` is ``IP:port``, the key that finds duplicates and gives the order.
    """

    endpoint: Endpoint
    text: str
    ready: bool
    serving: bool
    terminating: bool
    hints: Hints | None


Candidates = dict[PortName, list[Candidate]]


def candidates_by_port(
    slices: Iterable[EndpointSlice],
    family: Family,
    node_name: str,
    problems: list[str] | None = None,
) -> Candidates:
    """Merge all slices of one Service into its endpoints per port name and protocol.

    Slices of the other family are passed over, and so are ports without a name or number and
    endpoints without a usable address. Two slices may give one port name different numbers; both
    are kept. Each list is sorted by text, so ``10.0.0.10:80`` comes before ``10.0.0.2:80``: that
    order decides rule order and probabilities. A port without endpoints is absent. Addresses that
    are none are named in *problems*.
    """
    found: dict[PortName, dict[str, Candidate]] = {}
    # By name, so that two non-terminating duplicates resolve alike on every node.
    for slice_ in sorted(slices, key=lambda s: s.metadata.name):
        if slice_.address_type != family or not slice_.endpoints:
            continue
        addressed = _addressed(slice_, family, problems)
        for port in slice_.ports or ():
            protocol = Protocol.of(port.protocol)
            if port.name is None or not port.port or protocol is None:
                continue
            _merge(found.setdefault((port.name, protocol), {}), addressed, port.port, node_name)
    return {
        name: [merged[text] for text in sorted(merged)] for name, merged in found.items() if merged
    }


_Addressed = list[tuple[str, SliceEndpoint]]
"""The endpoints of a slice with their canonical addresses, read once for all its ports."""


def _addressed(slice_: EndpointSlice, family: Family, problems: list[str] | None) -> _Addressed:
    found: _Addressed = []
    for wire in slice_.endpoints or ():
        if not wire.addresses:
            continue
        text = wire.addresses[0]
        parsed = canonical_ip(text)
        if parsed is not None and parsed[0] is family:
            found.append((parsed[1], wire))
        elif problems is not None:
            name = slice_.metadata.name
            problems.append(f"EndpointSlice {name}: {text!r} is no {family} address")
    return found


def _merge(merged: dict[str, Candidate], addressed: _Addressed, port: int, node_name: str) -> None:
    for address, wire in addressed:
        conditions = wire.conditions
        ready = serving = True
        terminating = False
        if conditions is not None:
            ready = conditions.ready is not False
            serving = conditions.serving is not False
            terminating = conditions.terminating is True
        endpoint = Endpoint(address, port, bool(node_name) and wire.node_name == node_name)
        text = str(endpoint)
        # A pod's address may be reused while the old pod still terminates: the living one wins.
        if terminating and text in merged:
            continue
        merged[text] = Candidate(endpoint, text, ready, serving, terminating, wire.hints)
