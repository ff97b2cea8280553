"""Indexes for an org's trail of one actor and of one action. Built concurrently: nobody who writes the trail waits for them.

The constraint is on a column that is new and empty: its index is made in one short look through the table, which writers wait for.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("orgs", "0004_audit_append_only"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="auditrecord",
            index=models.Index(
                condition=models.Q(("org__isnull", False)), fields=["org", "actor", "-id"], name="audit_by_org_actor"
            ),
        ),
        AddIndexConcurrently(
            model_name="auditrecord",
            index=models.Index(
                condition=models.Q(("org__isnull", False)), fields=["org", "action", "-id"], name="audit_by_org_action"
            ),
        ),
        migrations.AddConstraint(
            model_name="auditrecord",
            constraint=models.UniqueConstraint(
                condition=models.Q(("once__isnull", False)), fields=("once",), name="audit_once"
            ),
        ),
    ]
