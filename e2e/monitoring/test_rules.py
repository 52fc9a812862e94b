"""The alert rules by themselves: what promtool says of them, and that each leads to a page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.kernel.running import REPOSITORY
from e2e.monitoring.files import MONITORING, RULES, alerts
from e2e.monitoring.prometheus import configuration

REPOSITORY_URL = "https://github.com/pykubeproxy/pykubeproxy/blob/main/"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
TESTS = MONITORING / "rules_test.yaml"

ALERTS = [pytest.param(alert, id=alert["alert"]) for alert in alerts()]


def promtool(*arguments: str) -> str:
    """Run it in deploy/monitoring; its refusal is a failure of the test."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name)


def test_the_rules_fire_when_they_must_and_only_then() -> None:
    promtool("test", "rules", TESTS.name)


def test_promtool_accepts_the_example_configuration(tmp_path: Path) -> None:
    """But for the discovery of Kubernetes, which Debian's build does not know."""
    config = tmp_path / "prometheus.yml"
    config.write_text(configuration())
    promtool("check", "config", str(config))


@pytest.mark.parametrize("alert", ALERTS)
def test_a_rule_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent(
    alert: dict[str, Any],
) -> None:
    expectations = [
        bool(case["exp_samples"])
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["promql_expr_test"]
        if f'alertname="{alert["alert"]}"' in case["expr"]
    ]
    assert {True, False} == set(expectations)


@pytest.mark.parametrize("alert", ALERTS)
def test_a_rule_says_what_it_is_about(alert: dict[str, Any]) -> None:
    assert {"severity"} == alert["labels"].keys()
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook_url"} == alert["annotations"].keys()
    assert re.fullmatch(r"Pykubeproxy([A-Z][a-z]+)+", alert["alert"])


@pytest.mark.parametrize("alert", ALERTS)
def test_a_rule_leads_to_its_page(alert: dict[str, Any]) -> None:
    url = alert["annotations"]["runbook_url"]
    assert f"{REPOSITORY_URL}docs/runbooks/{alert['alert']}.md" == url
    page = (REPOSITORY / url.removeprefix(REPOSITORY_URL)).read_text()
    assert page.startswith(f"# {alert['alert']}\n")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert ["Meaning", "Impact", "Diagnosis", "Remedy"] == headings
    assert f"[{alert['alert']}]({alert['alert']}.md)" in (RUNBOOKS / "README.md").read_text()


def test_there_is_no_page_without_a_rule() -> None:
    names = {alert["alert"] for alert in alerts()}
    assert names == {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}


SOURCES = "\n".join(path.read_text() for path in (REPOSITORY / "pykubeproxy").rglob("*.py"))


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_page_quotes_from_the_log_is_in_the_program(page: Path) -> None:
    joined = re.sub(r'"\s+f?"', "", SOURCES)  # texts that go over several lines
    quoted = re.findall(r"^\| `([^`]+)` \|", page.read_text(), re.MULTILINE)
    assert [] == [text for text in quoted if text not in joined]


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [] == [link for link in links if not (page.parent / link).exists()]


def test_the_operators_rules_are_the_same() -> None:
    """`make rules` writes them."""
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert ("monitoring.coreos.com/v1", "PrometheusRule") == (rule["apiVersion"], rule["kind"])
    assert yaml.safe_load(RULES.read_text()) == rule["spec"]
