"""The alerts: each fires when it should and not when it should not, as promtool sees it."""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from django.core.management import call_command

from . import stack
from .alert_cases import CASES, Case

FOLDER = stack.ROOT / "deploy/prometheus"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing")
        pytest.skip("promtool is missing: apt-get install prometheus")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_and_rules_are_right(promtool: str) -> None:
    run(promtool, "check", "config", FOLDER / "prometheus.yaml")
    run(promtool, "check", "rules", FOLDER / "alerts.yaml")


def _as_promtool_has_it(case: Case) -> dict[str, object]:
    return {
        "name": f"{case.alert}: {case.name}",
        "interval": f"{case.step}m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": firing}],
            }
            for minute, firing in case.firing.items()
        ],
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_it_fires_when_it_should_alone(alert: str, promtool: str, tmp_path: Path) -> None:
    (group,) = [group for group in RULES["groups"] if any(rule.get("alert") == alert for rule in group["rules"])]
    needed = [rule for rule in group["rules"] if "record" in rule or rule["alert"] == alert]
    rules, tests = tmp_path / "rules.yaml", tmp_path / "tests.yaml"
    rules.write_text(yaml.safe_dump({"groups": [group | {"rules": needed}]}))
    for step in {case.step for case in CASES if case.alert == alert}:
        cases = [_as_promtool_has_it(case) for case in CASES if case.alert == alert and case.step == step]
        tests.write_text(
            yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": f"{step}m", "tests": cases})
        )
        run(promtool, "test", "rules", tests)


def test_of_each_alert_both_is_tried() -> None:
    tried = defaultdict(set)
    for case in CASES:
        tried[case.alert] |= {bool(firing) for firing in case.firing.values()}
        tried[case.alert] |= {"silent throughout"} if not any(case.firing.values()) else set()
    assert dict(tried) == {alert: {True, False, "silent throughout"} for alert in ALERTS}


def test_each_alert_says_how_bad_it_is_what_it_is_and_what_to_do() -> None:
    pages = {path: path.read_text() for path in (stack.ROOT / "docs/runbooks").glob("*.md")}
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"page", "ticket"}, name
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", pages[stack.ROOT / path], re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, name


def test_the_manifest_of_the_operator_has_the_same_rules(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("prometheus_rule")
    text = capsys.readouterr().out
    assert text == (FOLDER / "prometheusrule.yaml").read_text(), "make it again: manage.py prometheus_rule"
    manifest = yaml.safe_load(text)
    assert manifest["spec"] == RULES
    assert (manifest["kind"], manifest["apiVersion"]) == ("PrometheusRule", "monitoring.coreos.com/v1")


def test_the_manifest_names_where_runbooks_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("prometheus_rule", runbooks="https://git.example.com/analytics/blob/main/")
    groups = yaml.safe_load(capsys.readouterr().out)["spec"]["groups"]
    urls = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(urls) == len(ALERTS)
    assert all(url.startswith("https://git.example.com/analytics/blob/main/docs/runbooks/") for url in urls)
