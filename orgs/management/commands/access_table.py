from typing import Any

from django.core.management.base import BaseCommand

from orgs.policy import as_markdown


class Command(BaseCommand):
    help = "Print the table of permissions and roles, as it stands in docs/access.md."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(as_markdown(), ending="")
