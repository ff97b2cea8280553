"""Audit records get address, outcome and what there is one of; their org becomes an id without a constraint. Staff get a role.

Each statement locks its table (audit records, orgs, people) for a moment: columns come with a default that needs no rewriting.
"""

import django.db.models.deletion
from django.db import migrations, models

# Back under a constraint: what named an org that is gone names none.
FIT_AGAIN = """
UPDATE orgs_auditrecord SET org_id = NULL WHERE NOT EXISTS (SELECT FROM orgs_org WHERE orgs_org.id = org_id);
UPDATE orgs_auditrecord SET actor = left(actor, 200) WHERE length(actor) > 200
"""


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0002_audit_by_target"),
    ]

    operations = [
        migrations.AddField(
            model_name="user",
            name="staff_role",
            field=models.CharField(
                choices=[("staff_support", "Staff support"), ("staff_admin", "Staff admin")],
                db_default="staff_support",
                default="staff_support",
                help_text="Of staff alone. Support looks; admins also change things. A superuser is a staff admin.",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="auditrecord",
            name="address",
            field=models.GenericIPAddressField(blank=True, null=True, verbose_name="client's address"),
        ),
        migrations.AddField(
            model_name="auditrecord",
            name="by_stranger",
            field=models.BooleanField(db_default=False, default=False, verbose_name="by a stranger"),
        ),
        migrations.AddField(
            model_name="auditrecord",
            name="once",
            field=models.CharField(editable=False, help_text="What there is one record of.", max_length=64, null=True),
        ),
        migrations.AddField(
            model_name="auditrecord",
            name="outcome",
            field=models.CharField(
                choices=[("done", "Done"), ("denied", "Denied")], db_default="done", default="done", max_length=8
            ),
        ),
        migrations.AlterField(
            model_name="auditrecord",
            name="action",
            field=models.CharField(help_text="One of orgs.actions.", max_length=64),
        ),
        migrations.AlterField(
            model_name="auditrecord",
            name="actor",
            field=models.CharField(help_text="user:<address>, key:<prefix> or command:<name>", max_length=260),
        ),
        migrations.AlterField(
            model_name="auditrecord",
            name="org",
            field=models.ForeignKey(
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to="orgs.org",
            ),
        ),
        migrations.RunSQL(migrations.RunSQL.noop, FIT_AGAIN),
    ]
