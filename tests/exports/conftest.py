"""A folder for files, and a broker that is left as it was found."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import LazySettings

from analytics_site.celery import app


@pytest.fixture
def folder(tmp_path: Path, settings: LazySettings) -> Iterator[Path]:
    """Where exports go. What is sent to workers meanwhile is taken back."""
    settings.EXPORT_FOLDER = str(tmp_path)
    yield tmp_path
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_purge("exports")
