"""Migrations leave the release before working: its processes run on while, and after, they are made."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.db import migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation

# Of the first version, which nothing ran before.
FIRST = {"orgs": 5, "ingestion": 4, "usage": 5, "reliability": 1, "exports": 1}
# What breaks the rule all the same, and why that harms nobody.
EXCUSED: dict[tuple[str, str], str] = {}
OWN = [app.label for app in apps.get_app_configs() if Path(app.path).parent == settings.BASE_DIR]

_TAKES_AWAY = (
    migrations.RemoveField,
    migrations.RenameField,
    migrations.RenameModel,
    migrations.DeleteModel,
    migrations.AlterModelTable,
)


def faults(operations: Sequence[Operation]) -> list[str]:
    """What of a migration an older process, or one that waits for a lock, would notice."""
    new = {operation.name_lower for operation in operations if isinstance(operation, migrations.CreateModel)}
    found = []
    for operation in operations:
        subject = getattr(operation, "model_name_lower", getattr(operation, "name_lower", ""))
        if isinstance(operation, migrations.SeparateDatabaseAndState):
            found += faults(operation.database_operations)
        elif isinstance(operation, _TAKES_AWAY):
            found.append(f"takes away what older processes use: {operation.describe()}")
        elif subject in new:
            continue
        elif isinstance(operation, migrations.AddField):
            field = operation.field
            if not (field.null or field.has_db_default() or field.many_to_many):
                found.append(f"older processes write no value: {operation.describe()}; give it db_default")
        elif type(operation) is migrations.AddIndex:
            found.append(f"writers wait: {operation.describe()}; AddIndexConcurrently")
    return found


def test_every_migration_since_the_first_version_only_expands() -> None:
    loaded = MigrationLoader(None).disk_migrations
    since = {
        (label, name): one
        for (label, name), one in loaded.items()
        if label in OWN and int(name[:4]) > FIRST.get(label, 0) and (label, name) not in EXCUSED
    }
    assert {key: found for key, one in since.items() if (found := faults(one.operations))} == {}
    assert set(EXCUSED) <= set(loaded)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (migrations.RemoveField("org", "slug"), "takes away"),
        (migrations.RenameField("org", "slug", "handle"), "takes away"),
        (migrations.AddField("org", "tier", models.TextField(default="free")), "db_default"),
        (migrations.AddIndex("org", models.Index(fields=("name",), name="by_name")), "AddIndexConcurrently"),
    ],
)
def test_what_breaks_the_release_before_is_found(operation: Operation, said: str) -> None:
    (found,) = faults([operation])
    assert said in found


def test_what_only_expands_is_fine() -> None:
    table = migrations.CreateModel("Note", [("id", models.BigAutoField(primary_key=True))])
    assert faults([table, migrations.AddField("note", "text", models.TextField())]) == []
    assert faults([migrations.AddField("org", "tier", models.TextField(db_default="free"))]) == []
    assert faults([migrations.AddField("org", "tier", models.TextField(null=True))]) == []
