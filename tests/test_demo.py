"""The parts of the demo that need no network: what it measures, explains and refuses."""

from __future__ import annotations

import io
import os
from collections import Counter

import pytest

import demo.__main__ as entry
from demo.cast import PICTURE
from demo.following import Followed, Outcome, judge
from demo.rules import explain, mentions, rules_of
from demo.screen import Screen
from demo.servers import explain as explain_server
from demo.servers import explain_real, virtual_servers

POD = {"10.244.0.11": "p1", "10.244.1.11": "r1"}
SAVED = """\
*nat
:KUBE-SVC-WEB - [0:0]
-A KUBE-SEP-ONE -s 10.244.0.11/32 -m comment --comment "default/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-ONE -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT \
--to-destination 10.244.0.11:8080
-A KUBE-SEP-TWO -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT \
--to-destination 10.244.1.11:8080
-A KUBE-SERVICES -d 10.96.0.30/32 -p tcp -m comment --comment "default/web-nodeport:http \
cluster IP" -m tcp --dport 80 -j KUBE-SVC-OTHER
-A KUBE-SERVICES -d 10.96.0.20/32 -p tcp -m comment --comment "default/web:http cluster IP" \
-m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SVC-OTHER -j KUBE-SEP-NONE
-A KUBE-SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.20/32 -p tcp -m comment --comment \
"default/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m comment --comment "default/web:http -> 10.244.0.11:8080" -m statistic \
--mode random --probability 0.50000000000 -j KUBE-SEP-ONE
-A KUBE-SVC-WEB -m comment --comment "default/web:http -> 10.244.1.11:8080" -j KUBE-SEP-TWO
COMMIT
""".splitlines()


LISTED = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.20:80 rr
  -> 10.244.0.11:8080             Masq    1      0          40
  -> 10.244.1.11:8080             Masq    0      1          39
UDP  10.96.0.10:53 mh persistent 600
""".splitlines()


@pytest.mark.parametrize(
    ("outcomes", "before", "after", "expected"),
    [
        pytest.param(
            [(0.001, "p1"), (0.002, "p2"), (0.003, "p1")], ["p1"], ["p1", "p2"],
            Followed(0.502, 3, 0), id="a new server answers",
        ),
        pytest.param(
            [(0.001, "p1"), (0.002, "p1")], ["p1"], ["p1", "p2"],
            None, id="the new server has not answered",
        ),
        pytest.param(
            [(0.001, "p1"), (0.002, "p2"), (0.003, "p1")], ["p1", "p2"], ["p1"],
            Followed(0.503, 3, 0), id="an old server answers no more",
        ),
        pytest.param(
            [(0.003, "p1"), (0.001, "p2")], ["p1", "p2"], ["p1"],
            Followed(0.503, 2, 0), id="in any order",
        ),
        pytest.param(
            [(0.001, "refused"), (0.002, "timeout"), (0.003, "p1")], ["refused"], ["p1"],
            Followed(0.503, 3, 1), id="a probe met neither state",
        ),
        pytest.param([(0.001, "p2")], ["p2"], ["p1"], None, id="only the old server"),
        pytest.param([], ["p1"], ["p1", "p2"], None, id="nothing known"),
    ],
)  # fmt: skip
def test_connections_follow_when_the_old_state_is_over_and_the_new_one_seen(
    outcomes, before, after, expected
):
    assert expected == judge([Outcome(at, at + 0.5, name) for at, name in outcomes], before, after)


def test_a_service_is_not_mistaken_for_one_whose_name_begins_alike():
    assert len(mentions(SAVED, "default/web-nodeport")) == 1
    assert len(mentions(SAVED, "default/web")) == 7
    assert mentions(SAVED, "default/we") == []


def test_the_rules_of_a_service_come_in_the_order_of_a_packet():
    chains = [line.split()[1] for line in rules_of(SAVED, "10.96.0.20")]
    service = ["KUBE-SERVICES"] + ["KUBE-SVC-WEB"] * 3
    assert [*service, "KUBE-SEP-ONE", "KUBE-SEP-ONE", "KUBE-SEP-TWO"] == chains


def test_every_rule_is_explained():
    told = [explain(rule, SAVED, POD.__getitem__)[1] for rule in rules_of(SAVED, "10.96.0.20")]
    assert told == [
        "to 10.96.0.20 port 80? then this Service decides",
        "a client outside 10.244.0.0/16? its answer must come back through this node",
        "one in 2 that come here: p1 (10.244.0.11:8080)",
        "everybody else: r1 (10.244.1.11:8080)",
        "p1 calling itself? it must not notice",
        "the packet gets its new destination: p1 (10.244.0.11:8080)",
        "the packet gets its new destination: r1 (10.244.1.11:8080)",
    ]


def test_virtual_servers_are_read_with_their_real_servers():
    web, dns = virtual_servers(LISTED)
    assert ("TCP", "10.96.0.20", 80, "rr", 0) == web[1:6]
    assert ("UDP", "10.96.0.10", 53, "mh", 600) == dns[1:6]
    expected = [("10.244.0.11:8080", 1, 0, 40), ("10.244.1.11:8080", 0, 1, 39)]
    assert expected == [real[1:] for real in web.reals]
    assert dns.reals == ()


def test_every_line_about_servers_is_explained():
    web, dns = virtual_servers(LISTED)
    assert [
        "TCP to 10.96.0.20 port 80? each new connection goes to the next one in the list",
        "UDP to 10.96.0.10 port 53? a client comes back to the same one within 600 s",
    ] == [explain_server(web), explain_server(dns)]
    assert [
        "p1: gets its share",
        "r1: leaves; nothing new, and what it has may end (1 open, 39 closed)",
    ] == [explain_real(real, POD.__getitem__) for real in web.reals]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"),
    [
        pytest.param(Terminal(), "", True, id="terminal"),
        pytest.param(Terminal(), "1", False, id="terminal with NO_COLOR"),
        pytest.param(io.StringIO(), "", False, id="file"),
    ],
)
def test_colours_are_for_people_who_want_them(stream, no_color, coloured, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    Screen(stream, fast=True).answers("p3", "10.96.0.20:80", Counter(p1=3, p2=1))
    assert coloured is ("\x1b[" in stream.getvalue())


def test_a_stream_without_unicode_gets_plain_characters():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    Screen(stream, fast=True).answers("p3", "10.96.0.20:80", Counter(p1=1))
    assert PICTURE.isascii() is False
    Screen(stream, fast=True).picture(PICTURE)
    expected = b"  p3     > 10.96.0.20:80       p1 ######################## 1\n"
    assert raw.getvalue().startswith(expected)


def test_a_command_breaks_where_a_shell_lets_it():
    stream = io.StringIO()
    Screen(stream, fast=True).command(["program", "--first=" + "x" * 60, "--second=y", "--third"])
    assert stream.getvalue().splitlines() == [
        f"  $ program --first={'x' * 60} \\",
        "      --second=y --third",
    ]


def test_without_root_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert entry.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: making network namespaces needs root")
    assert said.count("\n") == 1


def test_a_guest_cannot_be_kept(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(entry.shutil, "which", lambda _tool: "/bin/it")
    monkeypatch.setattr("e2e.guest.has_ip_vs", lambda: False)
    monkeypatch.setattr("e2e.guest.in_guest", lambda: False)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert entry.main(["--mode", "ipvs", "--keep"]) == 2
    assert "leave --keep out" in capsys.readouterr().err


def test_missing_programs_are_named_by_mode(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        entry.shutil, "which", lambda tool: None if tool in ("ipset", "ipvsadm") else tool
    )
    monkeypatch.setenv("PATH", os.environ["PATH"])
    assert entry.main(["--mode", "ipvs"]) == 2
    assert "missing: ipset, ipvsadm; `make setup`" in capsys.readouterr().err
