"""Who people are at the identity provider, which memberships are its word, and whether an address is known to be somebody's.

Columns with a constant default and an empty one: no row is written. `orgs_user` and `orgs_membership` are locked for a moment; the
foreign key is checked against rows that name none. No address that is here already counts as confirmed: it may be an invitation's.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0005_audit_indexes"),
    ]

    operations = [
        migrations.AddField(
            model_name="user",
            name="email_confirmed",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Somebody made sure that the address is this person's: staff, or the identity provider. An account that was made by the link of an invitation proves nothing of its address.",
                verbose_name="email address is confirmed",
            ),
        ),
        migrations.CreateModel(
            name="ProviderIdentity",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("issuer", models.CharField(max_length=255)),
                ("subject", models.CharField(max_length=255)),
                (
                    "gives_staff",
                    models.BooleanField(
                        default=False,
                        help_text="The person is staff because the provider said so, and for as long.",
                        verbose_name="makes staff",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="identities",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "identity at the provider",
                "verbose_name_plural": "identities at the provider",
            },
        ),
        migrations.AddField(
            model_name="membership",
            name="identity",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                help_text="Whose word this membership is, where it comes from the identity provider; it goes when that goes.",
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="memberships",
                to="orgs.provideridentity",
            ),
        ),
        migrations.AddConstraint(
            model_name="provideridentity",
            constraint=models.UniqueConstraint(fields=("issuer", "subject"), name="one_account_per_identity"),
        ),
        migrations.AddConstraint(
            model_name="provideridentity",
            constraint=models.UniqueConstraint(fields=("user", "issuer"), name="one_identity_per_issuer"),
        ),
    ]
