"""From EndpointSlices to candidates per port: merging, duplicates, conditions and their defaults.

Which of the candidates get traffic is decided in `pykubeproxy.sync.policy`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from pykubeproxy.model.addresses import canonical_ip
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import EndpointSlice, Hints
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
        if problems is not None:
            name = slice_.metadata.name
            problems.extend(
                f"EndpointSlice {name}: {wire.addresses[0]!r} is no {family} address"
                for wire in slice_.endpoints
                if wire.addresses and _address(wire.addresses[0], family) is None
            )
        for port in slice_.ports or ():
            if port.name is None or not port.port:
                continue
            try:
                protocol = Protocol(port.protocol or "TCP")
            except ValueError:
                continue
            merged = found.setdefault((port.name, protocol), {})
            _merge(merged, slice_, port.port, family, node_name)
    return {
        name: [merged[text] for text in sorted(merged)] for name, merged in found.items() if merged
    }


def _merge(
    merged: dict[str, Candidate], slice_: EndpointSlice, port: int, family: Family, node_name: str
) -> None:
    for wire in slice_.endpoints or ():
        if not wire.addresses:
            continue
        address = _address(wire.addresses[0], family)
        if address is None:
            continue
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
        if text in merged and terminating:
            continue
        merged[text] = Candidate(endpoint, text, ready, serving, terminating, wire.hints)


def _address(text: str, family: Family) -> str | None:
    parsed = canonical_ip(text)
    return parsed[1] if parsed is not None and parsed[0] is family else None
