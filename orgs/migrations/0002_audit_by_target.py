"""An index on what audit records are about. Built concurrently: nobody who writes the trail waits for it."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("orgs", "0001_initial"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="auditrecord",
            index=models.Index(
                condition=models.Q(("target", ""), _negated=True), fields=["target", "-id"], name="audit_by_target"
            ),
        ),
    ]
