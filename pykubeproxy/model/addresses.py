"""IP addresses and CIDRs in one canonical text form, so that equal text means equal address.

Reading is "sloppy" as in Kubernetes (k8s.io/utils/net): leading zeros in IPv4 octets and prefix
lengths are decimal, not octal and not an error. Writing is canonical: dotted IPv4, RFC 5952 lower
case IPv6, host bits of a CIDR cleared. An IPv4-mapped IPv6 address is the IPv4 address inside it.
Zone ids (``fe80::1%eth0``) are refused: the name means nothing in a kernel rule.

Whether an address is usable for a purpose (loopback, multicast) is for the callers.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from pykubeproxy.model.kinds import Family

__all__ = ["canonical_cidr", "canonical_ip", "contains", "family_of", "prefix_length"]

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_is_canonical_ipv4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch
_is_sloppy_ipv4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}").fullmatch
_is_decimal = re.compile(r"[0-9]{1,9}").fullmatch

_IPV4 = Family.IPV4  # looking a member up takes 0.1 us, and there are many addresses
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96


def canonical_ip(text: str) -> tuple[Family, str] | None:
    """Return the family and canonical form of an address, or ``None`` if *text* is none.

    Canonical IPv4 costs about half a microsecond and is returned as the same object; everything
    else goes through a bounded cache.
    """
    if _is_canonical_ipv4(text):
        return _IPV4, text
    return _parse_ip(text)


@lru_cache(maxsize=1 << 16)
def _parse_ip(text: str) -> tuple[Family, str] | None:
    parsed = _parse(text)
    if parsed is None:
        return None
    family, number = parsed
    if family is Family.IPV6 and number >> 32 == _MAPPED >> 32:
        family, number = Family.IPV4, number & 0xFFFFFFFF
    return family, _format(family, number)


@lru_cache(maxsize=1 << 13)
def canonical_cidr(text: str) -> tuple[Family, str] | None:
    """Return the family and canonical form of ``address/length``, or ``None`` if *text* is none.

    The address is masked to its network. A bare address is no CIDR. An IPv4-mapped network
    (length 96 and up) is the IPv4 network inside it, as Go prints it.
    """
    address, slash, length_text = text.partition("/")
    parsed = _parse(address)
    if not slash or parsed is None or not _is_decimal(length_text):
        return None
    family, number = parsed
    length = int(length_text)
    if length > family.host_prefix:
        return None
    if family is Family.IPV6 and number >> 32 == _MAPPED >> 32 and length >= 96:
        family, number, length = Family.IPV4, number & 0xFFFFFFFF, length - 96
    host_bits = family.host_prefix - length
    return family, f"{_format(family, number >> host_bits << host_bits)}/{length}"


def contains(cidr: str, ip: str) -> bool:
    """Tell whether *ip* lies in *cidr*; both canonical. Different families: ``False``.

    Raises:
        ValueError: one of them is not an address or CIDR at all.
    """
    family, network, host_bits = _network(cidr)
    ip_family, number = _number(ip)
    return ip_family is family and number >> host_bits == network


def family_of(address: str) -> Family:
    """Return the family of a canonical address or CIDR."""
    return Family.IPV6 if ":" in address else Family.IPV4


def prefix_length(cidr: str) -> int:
    """Return the length behind the slash; for a bare address that of its family (32 or 128)."""
    _, slash, length = cidr.partition("/")
    if slash:
        return int(length)
    return 128 if ":" in cidr else 32


@lru_cache(maxsize=1 << 12)
def _network(cidr: str) -> tuple[Family, int, int]:
    """Return the family, the network's number without its host bits, and how many those are."""
    family, number = _number(cidr.partition("/")[0])
    host_bits = family.host_prefix - prefix_length(cidr)
    return family, number >> host_bits, host_bits


def _number(ip: str) -> tuple[Family, int]:
    parsed = _parse(ip)
    if parsed is None:
        raise ValueError(f"{ip!r} is not an IP address")
    return parsed


def _parse(text: str) -> tuple[Family, int] | None:
    """Read either family; an IPv4-mapped address is still IPv6 here."""
    if ":" not in text:
        number = _parse_ipv4(text)
        return None if number is None else (Family.IPV4, number)
    if "%" in text:
        return None
    head, colon, tail = text.rpartition(":")
    if "." in tail:  # an IPv4 tail may be as sloppy as any other IPv4 address
        number = _parse_ipv4(tail)
        if number is None:
            return None
        text = f"{head}{colon}{number >> 16:x}:{number & 0xFFFF:x}"
    try:
        return Family.IPV6, int(IPv6Address(text))
    except AddressValueError:
        return None


def _parse_ipv4(text: str) -> int | None:
    if not _is_sloppy_ipv4(text):
        return None
    number = 0
    for octet in text.split("."):
        significant = octet.lstrip("0")
        value = int(significant or "0") if len(significant) <= 3 else 256
        if value > 255:
            return None
        number = number << 8 | value
    return number


def _format(family: Family, number: int) -> str:
    return str(IPv4Address(number)) if family is Family.IPV4 else str(IPv6Address(number))
