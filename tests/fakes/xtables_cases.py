"""What the iptables tools accept and refuse, as data: for the fake, and for the tools it imitates.

Every case starts in empty tables, runs `BASE`, then its own steps. A step is restore input, or
the arguments of one ``iptables`` command. `Case.refused` says whether the last step fails; the
steps before it succeed.
"""

from __future__ import annotations

from string import Template

from msgspec import Struct

__all__ = ["BASE", "CASES", "NFACCT", "Case", "accepted", "filter_", "nat", "refused", "spelled"]

NFACCT = "counter_that_exists"

BASE = """*nat
:ONE - [0:0]
:TWO - [0:0]
-A ONE -s $net -j TWO
-A ONE -j RETURN
COMMIT
"""

_WORDS = {
    4: {
        "host": "10.1.2.3",
        "net": "10.1.0.0/16",
        "messy_net": "10.1.2.3/16",
        "loopback": "127.0.0.0/8",
        "everybody": "0.0.0.0/0",
        "dnat": "10.1.2.3:8080",
        "bad_host": "10.1.2.300",
        "other_family": "fd00::1",
        "other_dnat": "[fd00::1]:80",
        "bad_mask": "10.0.0.0/33",
        "refused": "icmp-port-unreachable",
        "pairs": "PAIRS",
        "nets": "NETS",
        "other_pairs": "PAIRS6",
    },
    6: {
        "host": "fd00:1:2::3",
        "net": "fd00:1::/32",
        "messy_net": "FD00:1:2:0::3/32",
        "loopback": "::1/128",
        "everybody": "::/0",
        "dnat": "[fd00:1:2::3]:8080",
        "bad_host": "fd00:::1",
        "other_family": "10.0.0.1",
        "other_dnat": "10.0.0.1:80",
        "bad_mask": "fd00::/129",
        "refused": "icmp6-port-unreachable",
        "pairs": "PAIRS6",
        "nets": "NETS6",
        "other_pairs": "PAIRS",
    },
}


def spelled(text: str, version: int) -> str:
    """Fill in the addresses of IP version 4 or 6."""
    return Template(text).substitute(_WORDS[version])


class Case(Struct, frozen=True):
    name: str
    steps: tuple[str | tuple[str, ...], ...]
    refused: bool = False


def nat(*lines: str) -> str:
    return "\n".join(["*nat", *lines, "COMMIT", ""])


def filter_(*lines: str) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""])


def accepted(name: str, *steps: str | tuple[str, ...]) -> Case:
    return Case(name, steps)


def refused(name: str, *steps: str | tuple[str, ...]) -> Case:
    return Case(name, steps, refused=True)


_LONG = "A123456789B123456789C123456789"

_RULES = [
    '-m comment --comment "shop/web:http cluster IP" -m tcp -p tcp -d $host --dport 80 -j TWO',
    "-m comment --comment \"type 'hash ip:port'\" -j TWO",
    "-m comment --comment \"type \\'hash ip:port\\'\" -j TWO",
    "-m comment --comment shop/web -m udp -p udp -d $host --dport 53 -j TWO",
    "-m comment --comment word -j TWO",
    "-m sctp -p sctp --dport 9 -j TWO",
    "-p tcp --dport 80 -j TWO",
    "-p 17 -j TWO",
    "-p tcp -m tcp --dport 80:90 ! --sport 7 -j RETURN",
    "-m statistic --mode random --probability 0.3333333333 -j TWO",
    "-m statistic --mode random --probability 0.5000000000 -j TWO",
    "-m statistic --mode random --probability 1.0000000000 -j TWO",
    "-m statistic --mode random --probability 0.0000100000 -j TWO",
    "-m recent --name KUBE-SEP-X --rcheck --seconds 10800 --reap -j TWO",
    "-m recent --name KUBE-SEP-X --set -m tcp -p tcp -j DNAT --to-destination $dnat",
    "-m tcp -p tcp -j DNAT --to-destination $dnat",
    "-j DNAT --to-destination $host",
    "-j MARK --or-mark 0x00004000",
    "-j MARK --xor-mark 0x00004000",
    "-j MARK --set-mark 0x1",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-m mark ! --mark 0x00004000/0x00004000 -j RETURN",
    "-m mark --mark 0x1 -j RETURN",
    "-j MASQUERADE",
    "-j MASQUERADE --random-fully",
    "-s $messy_net -j TWO",
    "! -s $net -j TWO",
    "-s $everybody -j TWO",
    "! -d $loopback -m addrtype --dst-type LOCAL -j TWO",
    "-m addrtype --src-type LOCAL -j TWO",
    "-i veth-+ -j TWO",
    "! -i br0 -j TWO",
    "-o br0 -j TWO",
    f"-m nfacct --nfacct-name {NFACCT} -j TWO",
    '-m comment --comment "no target at all"',
    "-m conntrack --ctstate NEW -j TWO",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j RETURN",
    f"-m comment --comment {'a' * 300} -j TWO",  # cut, not refused
    "-m conntrack --ctstate INVALID -j ACCEPT",
]

_BAD_RULES = {
    "an unknown match": "-m nosuch -j TWO",
    "an unknown option": "--nosuch 1 -j TWO",
    "an unknown target": "-j NOSUCH",
    "an unknown option of a target": "-j MASQUERADE --nosuch",
    "an address that is none": "-s $bad_host -j TWO",
    "an address of the other family": "-s $other_family -j TWO",
    "a mask that is too long": "-s $bad_mask -j TWO",
    "a DNAT target of the other family": "-m tcp -p tcp -j DNAT --to-destination $other_dnat",
    "a DNAT port without a protocol": "-j DNAT --to-destination $dnat",
    "DNAT without a destination": "-j DNAT",
    "a port that is too large": "-m tcp -p tcp --dport 70000 -j TWO",
    "a port without a protocol": "--dport 80 -j TWO",
    "a protocol match without the protocol": "-m tcp --dport 80 -j TWO",
    "a protocol match of another protocol": "-m udp -p tcp --dport 80 -j TWO",
    "an unknown protocol": "-p nosuch -j TWO",
    "a probability above one": "-m statistic --mode random --probability 1.5 -j TWO",
    "a recent match that does nothing": "-m recent --name X -j TWO",
    "a counter that does not exist": "-m nfacct --nfacct-name no_such_counter -j TWO",
    "a state that is none": "-m conntrack --ctstate NOSUCH -j TWO",
    "an argument that is no option": "hello -j TWO",
    "an interface name that is too long": "-i abcdefghijklmnop -j TWO",
    "an address type that is none": "-m addrtype --dst-type NOSUCH -j TWO",
    "two targets": "-j TWO -j RETURN",
    "a filter target in nat": "-j REJECT",
    "a jump to a built-in chain": "-j OUTPUT",
    "an option without its value": "-j TWO -s",
}

CASES = [
    *(accepted(f"appends: {rule}", nat(f"-A ONE {rule}")) for rule in _RULES),
    *(
        accepted(f"deletes by content: {rule}", nat(f"-A ONE {rule}"), nat(f"-D ONE {rule}"))
        for rule in _RULES
    ),
    *(refused(f"refuses {name}", nat(f"-A ONE {rule}")) for name, rule in _BAD_RULES.items()),
    # chains
    accepted("a chain line creates a chain", nat(":NEW - [0:0]")),
    accepted("a chain line empties a chain", nat(":ONE - [0:0]")),
    accepted("a chain line of a built-in chain sets its policy", filter_(":INPUT DROP [0:0]")),
    accepted(
        "a chain line of a built-in chain leaves its rules",
        nat("-A OUTPUT -j ONE"),
        nat(":OUTPUT ACCEPT [0:0]"),
    ),
    accepted("a chain line needs no counters", nat(":NEW -")),
    accepted("an empty chain that nobody jumps to can be deleted", nat(":ONE - [0:0]", "-X ONE")),
    accepted(
        "a chain can be deleted after the jumps to it",
        nat(":ONE - [0:0]", ":TWO - [0:0]", "-X TWO", "-X ONE"),
    ),
    accepted("a chain is made and deleted in one input", nat(":NEW - [0:0]", "-X NEW")),
    accepted("a chain with a name of 28 characters", nat(f":{_LONG[:28]} - [0:0]")),
    refused("refuses a chain name of 29 characters", nat(f":{_LONG[:29]} - [0:0]")),
    refused("refuses to create a chain twice", nat("-N ONE")),
    accepted("-N creates a chain", nat("-N NEW", "-A NEW -j TWO")),
    refused("refuses to delete a chain with rules", nat("-A TWO -j RETURN", "-X TWO")),
    refused("refuses to delete a chain that is jumped to", nat(":TWO - [0:0]", "-X TWO")),
    refused("refuses to delete a chain that is not there", nat("-X NOPE")),
    refused("refuses to flush a chain that is not there", nat("-F NOPE")),
    accepted("-F empties a chain", nat("-F ONE", "-X TWO")),
    # rules in chains
    refused("refuses to append to a missing chain", nat("-A NOPE -j RETURN")),
    refused("refuses to insert into a missing chain", nat("-I NOPE -j RETURN")),
    refused("refuses to delete from a missing chain", nat("-D NOPE -j RETURN")),
    refused("refuses to delete a rule that is not there", nat("-D ONE -j ACCEPT")),
    refused("refuses a jump to a missing chain", nat("-A ONE -j NOPE")),
    refused("refuses a jump to a chain that comes later", nat("-A ONE -j LATER", "-N LATER")),
    accepted(
        "a jump to a chain of the same input",
        nat(":NEW - [0:0]", "-A ONE -j NEW", "-A NEW -j TWO"),
    ),
    accepted("-I puts a rule first", nat("-I ONE -j ACCEPT")),
    accepted("-I puts a rule at a position", nat("-I ONE 2 -j ACCEPT")),
    accepted("-I puts a rule behind the last", nat("-I ONE 3 -j ACCEPT")),
    refused("refuses a position beyond the end", nat("-I ONE 4 -j ACCEPT")),
    accepted("-D deletes by number", nat("-D ONE 1")),
    refused("refuses to delete a number beyond the end", nat("-D ONE 3")),
    accepted(
        "-D deletes the first of equal rules",
        nat("-A ONE -j TWO", "-A ONE -j RETURN"),
        nat("-D ONE -j RETURN"),
    ),
    accepted(
        "-D finds a rule in another spelling",
        nat("-A ONE -j MARK --or-mark 0x00004000"),
        nat("-D ONE -j MARK --set-xmark 0x4000/0x4000"),
    ),
    refused("refuses an input interface in OUTPUT", nat("-A OUTPUT -i eth0 -j ONE")),
    refused("refuses an output interface in PREROUTING", nat("-A PREROUTING -o eth0 -j ONE")),
    # what only the kernel sees
    refused("refuses masquerading in filter", filter_("-A INPUT -j MASQUERADE")),
    refused(
        "refuses DNAT where POSTROUTING gets to it",
        nat("-A TWO -j DNAT --to-destination $host", "-A POSTROUTING -j TWO"),
    ),
    refused(
        "refuses masquerading where OUTPUT gets to it",
        nat("-A TWO -j MASQUERADE", "-A OUTPUT -j TWO"),
    ),
    refused("refuses a loop that packets can get into", nat("-A TWO -j ONE", "-A OUTPUT -j ONE")),
    accepted("a loop that no packet can get into", nat("-A TWO -j ONE")),
    refused("refuses to drop in nat", nat("-A ONE -j DROP")),
    accepted("filter drops", filter_("-A INPUT -d $host -j DROP")),
    accepted("filter rejects", filter_("-A INPUT -d $host -j REJECT")),
    accepted(
        "filter rejects as asked", filter_("-A INPUT -d $host -j REJECT --reject-with $refused")
    ),
    # transactions
    refused("a table is all or nothing", nat("-A ONE -j ACCEPT", ":NEW - [0:0]", "-X NOPE")),
    refused("a table without COMMIT is not changed", "*nat\n-A ONE -j ACCEPT\n"),
    refused(
        "tables before a refused one stay committed",
        nat("-A ONE -j ACCEPT") + filter_("-A NOPE -j ACCEPT"),
    ),
    accepted("two tables in one input", nat("-A ONE -j ACCEPT") + filter_(":NEW - [0:0]")),
    accepted("comments and blank lines are skipped", "# hello\n\n" + nat("# again", "-F ONE")),
    refused("refuses an unknown table", "*nosuch\nCOMMIT\n"),
    refused("refuses a line that is no command", nat("hello")),
    accepted("an empty input does nothing", ""),
    # single commands
    accepted("the command -N creates", ("-t", "nat", "-N", "NEW")),
    refused("the command -N refuses a second time", ("-t", "nat", "-N", "ONE")),
    accepted("the command -C finds", ("-t", "nat", "-C", "ONE", "-s", "$net", "-j", "TWO")),
    accepted(
        "the command -C finds another spelling",
        nat("-A TWO -j MARK --or-mark 0x4000"),
        ("-t", "nat", "-C", "TWO", "-j", "MARK", "--set-xmark", "0x4000/0x4000"),
    ),
    refused("the command -C misses", ("-t", "nat", "-C", "ONE", "-j", "TWO")),
    refused("the command -C misses a chain", ("-t", "nat", "-C", "NOPE", "-j", "TWO")),
    refused("the command -C refuses a missing target", ("-t", "nat", "-C", "ONE", "-j", "NOPE")),
    accepted(
        "the command -I inserts",
        (
            "-t",
            "nat",
            "-I",
            "OUTPUT",
            "-m",
            "comment",
            "--comment",
            "kubernetes service portals",
            "-j",
            "ONE",
        ),
    ),
    accepted("the command -D deletes", ("-t", "nat", "-D", "ONE", "-j", "RETURN")),
    refused("the command -D misses", ("-t", "nat", "-D", "ONE", "-j", "ACCEPT")),
    accepted("the command -S lists", ("-t", "nat", "-S", "ONE")),
    refused("the command -S misses", ("-t", "nat", "-S", "NOPE")),
    accepted("the command -F flushes", ("-t", "nat", "-F", "ONE")),
    refused("the command -X refuses a chain in use", ("-t", "nat", "-X", "TWO")),
    accepted("the command -X deletes", nat("-F ONE"), ("-t", "nat", "-X", "TWO")),
    accepted("the command -X without a chain deletes all", nat("-F ONE"), ("-t", "nat", "-X")),
    refused("a command refuses a long chain name", ("-t", "nat", "-N", _LONG)),
    refused("a command refuses an unknown table", ("-t", "nosuch", "-S")),
]
