from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings
from django.core.management.base import BaseCommand

ALERTS = Path(settings.BASE_DIR, "deploy", "prometheus", "alerts.yaml")
HEAD = "# Made from alerts.yaml by manage.py prometheus_rule: change that, and make this again.\n"


class Command(BaseCommand):
    help = "Print deploy/prometheus/alerts.yaml as a PrometheusRule of the Prometheus operator."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--runbooks", default="", help="what stands before docs/runbooks/…: where yours are read")

    def handle(self, *args: Any, **options: Any) -> None:
        spec = yaml.safe_load(ALERTS.read_text())
        for group in spec["groups"]:
            for rule in group["rules"]:
                if "annotations" in rule:
                    rule["annotations"]["runbook_url"] = options["runbooks"] + rule["annotations"]["runbook_url"]
        manifest = {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "analytics", "labels": {"app.kubernetes.io/name": "analytics"}},
            "spec": spec,
        }
        text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=10_000)
        self.stdout.write(HEAD + text, ending="")
