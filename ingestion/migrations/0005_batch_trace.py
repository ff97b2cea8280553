from django.db import migrations, models


class Migration(migrations.Migration):
    """Nullable and without a default: no row is written anew. The table is locked for the moment that this takes."""

    dependencies = [("ingestion", "0004_retention")]

    operations = [
        migrations.AddField(
            model_name="batch",
            name="traceparent",
            field=models.CharField(
                editable=False,
                help_text="Of the span that stored it, where that is traced.",
                max_length=55,
                null=True,
            ),
        ),
    ]
