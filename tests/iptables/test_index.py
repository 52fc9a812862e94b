"""A shared chain as a list or a tree: any history ends with the chains of a fresh start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.iptables.index import ChainIndex, Edit, Held, Member, Sizes, tree_chains
from pykubeproxy.iptables.objects import DispatchRule, Rules, SharedChain, TailRule
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey

SHARED = SharedChain("nat", "KUBE-SERVICES")
TAIL = TailRule("nat", "KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
OWNER = ServiceKey("ns", "a")
SMALL = Sizes(above=3, leaf_rules=2)


def to_address(address: str, port: int, protocol: str = "tcp") -> DispatchRule:
    return DispatchRule("nat", "KUBE-SERVICES", f"{protocol} {address} {port}")


def to_port(port: int, protocol: str = "tcp") -> DispatchRule:
    return DispatchRule("nat", "KUBE-SERVICES", f"{protocol} node port {port}")


def rules_of(key: DispatchRule, count: int = 1) -> Rules:
    protocol, _, rest = key.match.partition(" ")
    where, _, port = rest.rpartition(" ")
    destination = "-m addrtype --dst-type LOCAL" if where == "node port" else f"-d {where}"
    return tuple(
        f"-m {protocol} -p {protocol} {destination} --dport {port} -j KUBE-SVC-{n}"
        for n in range(count)
    )


class Kernel:
    """Chains as they would be after each edit of a tree."""

    def __init__(self, family: Family = Family.IPV4, sizes: Sizes = SMALL) -> None:
        self.family = family
        self.sizes = sizes
        self.index = ChainIndex(SHARED, family, sizes)
        self.members: dict[Member, Rules] = {}
        self.chains: dict[str, Rules] = {}

    def edit(
        self,
        puts: Mapping[Member, Rules] | None = None,
        drops: tuple[Member, ...] = (),
        *,
        reset: bool = False,
    ) -> Edit | None:
        held: dict[Member, Held] = {key: (OWNER, rules) for key, rules in (puts or {}).items()}
        edit = self.index.edit(held, drops, reset=reset)
        if reset:
            self.members.clear()
        for key in drops:
            self.members.pop(key, None)
        self.members.update(puts or {})
        if edit is not None:
            for name in edit.filled:
                assert (name in edit.new) == (name not in self.chains and name != SHARED.name)
                self.chains[name] = tuple(rule for _, rule in edit.filled[name])
            for name in edit.gone:
                del self.chains[name]
        return edit

    def fresh(self) -> dict[str, Rules]:
        found = tree_chains(SHARED, self.family, self.sizes, self.members)
        return {name: chain.rules for name, chain in found.items()}

    def walk(self, address: str, protocol: str, port: int) -> list[str]:
        """The targets of rules for a packet, besides those that lead on within the tree."""
        return list(self._walk(SHARED.name, address, protocol, port))

    def _walk(self, chain: str, address: str, protocol: str, port: int) -> Iterator[str]:
        assert len(self.chains[chain]) <= 40
        for rule in self.chains[chain]:
            words = rule.split()
            options = dict(pairwise(words))
            if "-d" in options and ip_address(address) not in ip_network(options["-d"]):
                continue
            if options.get("-p", protocol) != protocol:
                continue
            low, _, high = options.get("--dport", f"{port}").partition(":")
            if not int(low) <= port <= int(high or low):
                continue
            if options["-j"].startswith("KUBE-SVC-IDX"):
                yield from self._walk(options["-j"], address, protocol, port)
            else:
                yield rule


def test_few_rules_are_a_list_for_the_caller_to_change() -> None:
    kernel = Kernel()
    for port in (80, 443, 8080):
        key = to_address("10.96.0.1", port)
        assert kernel.edit({key: rules_of(key), TAIL: (TAIL.rule,)}) is None
    assert not kernel.index.is_tree


def test_more_rules_become_a_tree_at_once_and_few_again_a_list() -> None:
    kernel = Kernel()
    keys = [to_address("10.96.0.1", port) for port in (80, 443, 8080, 9090)]
    kernel.edit({key: rules_of(key) for key in keys[:3]} | {TAIL: (TAIL.rule,)})
    edit = kernel.edit({keys[3]: rules_of(keys[3])})
    assert edit is not None
    assert {SHARED.name} == edit.filled.keys() - edit.new
    assert TAIL.rule == kernel.chains[SHARED.name][-1]
    assert kernel.edit(drops=(keys[0],)) is not None, "not a list yet: just below the number"
    edit = kernel.edit(drops=(keys[1],))
    assert edit is not None
    assert {SHARED.name} == kernel.chains.keys()
    assert (*rules_of(keys[2]), *rules_of(keys[3]), TAIL.rule) == kernel.chains[SHARED.name]
    assert kernel.edit(drops=(keys[2],)) is None


def test_never_means_a_list_of_any_length() -> None:
    kernel = Kernel(sizes=Sizes(above=None))
    keys = [to_address("10.96.0.1", port) for port in range(1, 1000)]
    assert kernel.edit({key: rules_of(key) for key in keys}) is None


@pytest.mark.parametrize(
    ("family", "address"), [(Family.IPV4, "10.{}.{}.{}"), (Family.IPV6, "fd00:{}:{}::{}")]
)
def test_one_rule_changes_a_handful_of_chains_however_many_there_are(
    family: Family, address: str
) -> None:
    kernel = Kernel(family, Sizes())
    addresses = [address.format(96 + n % 16, n // 16, n * 13 % 256) for n in range(3000)]
    keys = [to_address(a, 80) for a in dict.fromkeys(addresses)]
    kernel.edit({key: rules_of(key) for key in keys})
    assert kernel.fresh() == kernel.chains
    assert max(map(len, kernel.chains.values())) <= 16
    for key in keys[::50]:
        for edit in (kernel.edit(drops=(key,)), kernel.edit({key: rules_of(key)})):
            assert edit is not None
            assert 1 <= len(edit.filled) <= 6
            assert sum(map(len, edit.filled.values())) <= 50
            assert len(edit.gone) <= 5
    assert kernel.fresh() == kernel.chains


def test_a_rule_is_found_where_the_packet_goes() -> None:
    kernel = Kernel(sizes=Sizes(above=0, leaf_rules=1))
    keys = [
        *(to_address("10.96.0.1", port) for port in (53, 80, 443, 9153)),
        *(to_address("10.96.0.1", port, "udp") for port in (53, 80)),
        *(to_address(f"10.96.{n}.7", 80) for n in range(9)),
        *(to_address(f"192.0.2.{n}", 80, "sctp") for n in (1, 2, 3, 128, 129)),
        *(to_port(30000 + n * n) for n in range(12)),
        to_port(30001, "udp"),
    ]
    kernel.edit({key: rules_of(key) for key in keys} | {TAIL: (TAIL.rule,)})
    by_port = {
        port: list(rules_of(to_port(port))) for port in (30000, 30001, 30121) if to_port(port)
    }
    cases = {
        ("10.96.0.1", "tcp", 80): [*rules_of(to_address("10.96.0.1", 80))],
        ("10.96.0.1", "udp", 80): [*rules_of(to_address("10.96.0.1", 80, "udp"))],
        ("10.96.0.1", "tcp", 81): [],
        ("10.96.8.7", "tcp", 80): [*rules_of(to_address("10.96.8.7", 80))],
        ("10.96.9.7", "tcp", 80): [],
        ("192.0.2.129", "sctp", 80): [*rules_of(to_address("192.0.2.129", 80, "sctp"))],
        ("192.0.2.129", "tcp", 80): [],
        ("198.51.100.1", "tcp", 30000): by_port[30000],
        ("198.51.100.1", "tcp", 30121): by_port[30121],
        ("198.51.100.1", "udp", 30001): [*rules_of(to_port(30001, "udp"))],
        ("198.51.100.1", "udp", 30000): [],
    }
    found = {packet: kernel.walk(*packet) for packet in cases}
    assert {packet: [*rules, TAIL.rule] for packet, rules in cases.items()} == found


def test_rules_without_a_place_stay_in_the_shared_chain() -> None:
    kernel = Kernel(sizes=Sizes(above=0, leaf_rules=1))
    odd = DispatchRule("nat", "KUBE-SERVICES", "whatever")
    keys = [odd, *(to_address("10.96.0.1", port) for port in range(5))]
    kernel.edit({key: (f"-j {n}",) for n, key in enumerate(keys)} | {TAIL: (TAIL.rule,)})
    assert ("-j 0", TAIL.rule) == kernel.chains[SHARED.name][-2:]


def test_many_rules_for_one_place_share_a_leaf() -> None:
    kernel = Kernel(sizes=Sizes(above=0, leaf_rules=1))
    keys = [DispatchRule("nat", SHARED.name, f"health check 30000 of {n}") for n in range(5)]
    kernel.edit({key: (f"-p tcp --dport 30000 -j {key.match[-1]}",) for key in keys})
    assert 5 == len(kernel.walk("10.0.0.1", "tcp", 30000))
    for key in keys[:4]:
        kernel.edit(drops=(key,))
    assert kernel.fresh() == kernel.chains


KEYS = [
    # Outside of what the others have in common, so that the tree begins higher with them.
    *(to_address(ip, 80) for ip in ("203.0.113.5", "10.200.0.1")),
    *(to_address(f"10.96.{n >> 4}.{n & 15}", 80) for n in range(24)),
    *(to_address("10.96.0.1", port, protocol) for port in (1, 2, 3) for protocol in ("tcp", "udp")),
    *(to_port(30000 + n) for n in range(8)),
    TAIL,
]
STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(KEYS), st.integers(1, 2), max_size=12),
        st.lists(st.sampled_from(KEYS), max_size=12, unique=True),
        st.sampled_from(["edit", "edit", "edit", "reset", "undo"]),
    ),
    max_size=8,
)


@given(STEPS, st.sampled_from([Sizes(0, 1), Sizes(0, 3), Sizes(6, 2)]))
def test_any_history_ends_as_a_fresh_start_would(
    steps: list[tuple[dict[Member, int], list[Member], str]], sizes: Sizes
) -> None:
    kernel = Kernel(sizes=sizes)
    for wanted, drops, how in steps:
        puts = {
            key: rules_of(key, count) if isinstance(key, DispatchRule) else (key.rule,)
            for key, count in wanted.items()
        }
        if how == "undo":
            before = dict(kernel.members), dict(kernel.chains), kernel.index.is_tree
            kernel.edit(puts, tuple(drops))
            kernel.index.undo()
            kernel.members, kernel.chains = dict(before[0]), dict(before[1])
            assert before[2] == kernel.index.is_tree
            continue
        kernel.edit(puts, tuple(key for key in drops if key not in puts), reset=how == "reset")
        if kernel.index.is_tree:
            assert kernel.fresh() == kernel.chains
        else:
            assert kernel.chains.keys() <= {SHARED.name}


@given(st.lists(st.sampled_from(KEYS), unique=True), st.lists(st.sampled_from(KEYS), unique=True))
def test_what_was_seen_is_what_the_next_edit_starts_from(
    seen: list[Member], wanted: list[Member]
) -> None:
    """Chains that both have stay, and every other one is filled or removed."""
    sizes = Sizes(0, 2)
    held = dict.fromkeys(seen, ("-j A",))
    kernel = Kernel(sizes=sizes)
    kernel.index.hold(held, as_tree=True)
    found = tree_chains(SHARED, Family.IPV4, sizes, held)
    kernel.chains = {name: chain.rules for name, chain in found.items()}
    kernel.members = dict(held)
    puts = {key: ("-j A",) for key in wanted if key not in held}
    kernel.edit(puts, tuple(key for key in seen if key not in wanted))
    if kernel.index.is_tree:
        assert kernel.fresh() == kernel.chains
