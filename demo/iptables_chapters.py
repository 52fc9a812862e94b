"""The chapters that only iptables mode has: rules."""

from __future__ import annotations

from collections.abc import Collection

from demo.cast import WEB, WEB_FILE
from demo.chapters import chains
from demo.rules import explain, mentions, rules_of
from demo.screen import Screen
from demo.stage import Stage, expect
from e2e.lab import Connection

__all__ = [
    "COLUMN",
    "LAST_PODS",
    "NONE_LEFT",
    "OURS",
    "WRITTEN",
    "after_changes",
    "before_changes",
    "count",
    "to_look_with",
    "traces",
]

WRITTEN = "lines"
COLUMN = "lines"
OURS = "chains"
NONE_LEFT = "no chain of ours is left"
LAST_PODS = ("p1", "r1")


def before_changes(stage: Stage, screen: Screen, connection: Connection) -> None:
    screen.heading("Services that need no proxy")
    saved = stage.saved()
    for service, why in (
        ("default/web", ""),
        ("default/db", "headless: clients dial the pods"),
        ("default/payments", "ExternalName: an alias in DNS"),
    ):
        found = len(mentions(saved, service))
        expect(bool(found) is not bool(why), f"{found} rules mention {service}")
        screen.row([(service, 18), (f"{found} rules", -9), (why, 40)])


def after_changes(stage: Stage, screen: Screen, connection: Connection) -> None:
    screen.heading("How it is done: the rules of one Service")
    stage.set_endpoints(WEB_FILE, LAST_PODS)
    stage.wait_for(
        lambda: len(rules_of(stage.saved(), WEB)) == 8, "the eight rules of web with two endpoints"
    )
    screen.say("web with two endpoints, p1 and r1, from iptables-save (comments left out):")
    saved = stage.saved()
    for rule in rules_of(saved, WEB):
        screen.rule_line(*explain(rule, saved, stage.lab.owner))


def to_look_with(stage: Stage) -> list[str]:
    return [f"iptables-{stage.variant}-save -t nat | less"]


def traces(stage: Stage) -> set[str]:
    return chains(stage.saved())


def count(traces: Collection[str]) -> str:
    return f"{len(traces)} chains"
