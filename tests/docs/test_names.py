"""Metrics, flags and fields that a page names are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykubeproxy.flags import FLAGS
from tests.docs.pages import REPOSITORY, commands, every_page, inline
from tests.metrics.names import ABSENT, TABLE

DOCS = REPOSITORY / "docs"
OURS = {flag.name for flag in FLAGS}

# AddFieldLabelConversionsForEvent in Kubernetes' pkg/apis/core/v1: what `kubectl get events`, which
# asks for v1, may select by. The names of events.k8s.io/v1 are refused.
OF_EVENTS = {
    *("reason", "reportingComponent", "source", "type", "metadata.name", "metadata.namespace"),
    *(f"involvedObject.{field}" for field in ("kind", "namespace", "name", "uid")),
}
OF_PODS = {"metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"}


@every_page
def test_a_metric_that_is_named_is_served(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\b(?:pyk|k)ubeproxy_[a-z_]+[a-z]\b", text))
    bare = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    # A family of them, as `pykubeproxy_watch_` in a pattern or `kubeproxy_*`, begins some.
    known = {*TABLE, *ABSENT}
    assert set() == {n for n in bare if not any(k == n or k.startswith(f"{n}_") for k in known)}


@every_page
def test_a_flag_of_ours_in_a_command_is_understood(page: Path) -> None:
    calls = [c for c in commands(page) if re.match(r"(\S*/)?(pykubeproxy|kube-proxy) ", c)]
    used = {flag for call in calls for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*", call)}
    assert {"--bogus"} >= used - OURS


@pytest.mark.parametrize("page", ["configuration.md", "ipvs.md", "http.md", "debugging.md"])
def test_a_flag_between_backticks_is_understood(page: str) -> None:
    starting = [re.match(r"--[a-z][a-z-]*", text) for text in inline(DOCS / page)]
    assert set() == {found[0] for found in starting if found} - OURS


@every_page
def test_a_field_selector_is_one_that_the_server_knows(page: Path) -> None:
    for command in commands(page):
        known = OF_EVENTS if re.search(r"get events", command) else OF_PODS
        for selector in re.findall(r"--field-selector[= ](\S+)", command):
            fields = {part.partition("=")[0] for part in selector.split(",")}
            assert fields <= known, command
