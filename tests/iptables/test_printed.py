"""A table of what iptables-save 1.8.9 prints; e2e/kernel/test_printed_rules.py asks it itself."""

from __future__ import annotations

import pytest

from pykubeproxy.iptables.printed import printed
from pykubeproxy.model.kinds import Family

MASK4 = "255.255.255.255"
MASK6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param("-j DROP", "-j DROP", id="nothing but a target"),
        pytest.param(
            "-m comment --comment shop/web:http -m tcp -p tcp -d 10.96.0.1 --dport 80 -j X",
            '-d 10.96.0.1/32 -p tcp -m comment --comment "shop/web:http" -m tcp --dport 80 -j X',
            id="addresses and protocol to the front",
        ),
        pytest.param(
            "-m comment --comment web -j X", "-m comment --comment web -j X", id="plain comment"
        ),
        pytest.param(
            "-m comment --comment \"type 'hash ip:port'\" -j X",
            "-m comment --comment \"type \\'hash ip:port\\'\" -j X",
            id="quotes inside a comment",
        ),
        pytest.param(
            '-m comment --comment "-j DROP -p tcp" -j X',
            '-m comment --comment "-j DROP -p tcp" -j X',
            id="options inside a comment",
        ),
        pytest.param(
            '-m comment --comment "only counts"',
            '-m comment --comment "only counts"',
            id="no target",
        ),
        pytest.param(
            "-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,DNAT,ESTABLISHED",
            "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT",
            id="negations and states",
        ),
        pytest.param("! -i veth+ -j X", "! -i veth+ -j X", id="interface"),
        pytest.param("-s 0.0.0.0/0 -j X", "-j X", id="from everywhere"),
        pytest.param("! -s 0.0.0.0/0 -j X", "! -s 0.0.0.0/0 -j X", id="from nowhere"),
        pytest.param(
            "-m mark ! --mark 0x00004000/0x00004000 -j RETURN",
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
            id="mark",
        ),
        pytest.param(
            "-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0", id="clearing a mark"
        ),
        pytest.param(
            "-j MARK --or-mark 0x80000000",
            "-j MARK --set-xmark 0x80000000/0x80000000",
            id="setting a mark",
        ),
        pytest.param(
            "-m recent --name S --rcheck --seconds 60 --reap -j S",
            f"-m recent --rcheck --seconds 60 --reap --name S --mask {MASK4} --rsource -j S",
            id="recent",
        ),
        pytest.param(
            "-m recent --name S --set -m tcp -p tcp -j DNAT --to-destination 10.1.0.5:80",
            f"-p tcp -m recent --set --name S --mask {MASK4} --rsource -m tcp "
            "-j DNAT --to-destination 10.1.0.5:80",
            id="recent, remembered",
        ),
        pytest.param(
            "-m statistic --mode random --probability 0.3333333333 -j S",
            "-m statistic --mode random --probability 0.33333333349 -j S",
            id="probability",
        ),
        pytest.param(
            "-m conntrack --ctstate INVALID -m nfacct --nfacct-name dropped -j DROP",
            "-m conntrack --ctstate INVALID -m nfacct --nfacct-name  dropped -j DROP",
            id="two blanks",
        ),
        pytest.param(
            "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
            "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT",
            id="option without a value",
        ),
        pytest.param(
            "-m set --match-set S dst,dst,src ! -s 10.1.0.0/16 -j X",
            "! -s 10.1.0.0/16 -m set --match-set S dst,dst,src -j X",
            id="set",
        ),
        pytest.param(
            "-s 203.0.113.1 -m ipvs --vaddr 203.0.113.1 --vproto tcp --vport 80 -j DROP",
            "-s 203.0.113.1/32 -m ipvs --vproto 6 --vaddr 203.0.113.1 --vport 80 -j DROP",
            id="ipvs",
        ),
        pytest.param("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable", id="refusal"),
    ],
)
def test_how_a_rule_is_printed(rule, expected):
    assert expected == printed(rule, Family.IPV4)
    assert expected == printed(expected, Family.IPV4)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param("-d fd00::1 -j X", "-d fd00::1/128 -j X", id="address"),
        pytest.param("-j REJECT", "-j REJECT --reject-with icmp6-port-unreachable", id="refusal"),
        pytest.param(
            "-m recent --name S --set",
            f"-m recent --set --name S --mask {MASK6} --rsource",
            id="recent",
        ),
    ],
)
def test_how_a_rule_is_printed_in_ipv6(rule, expected):
    assert expected == printed(rule, Family.IPV6)
    assert expected == printed(expected, Family.IPV6)


@pytest.mark.parametrize("rule", ["-m tcp --tcp-flags SYN SYN", "--dport 80", "-f"])
def test_what_no_rule_of_ours_says_is_refused(rule):
    with pytest.raises(ValueError, match="is in no rule of ours"):
        printed(rule, Family.IPV4)
