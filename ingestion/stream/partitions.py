"""The streams that the settings mean, and which of them an org's events stay in."""

import uuid

from django.conf import settings


def streams() -> list[str]:
    """The stream, or its partitions by RabbitMQ's naming of super streams."""
    count = settings.RABBITMQ_STREAM_PARTITIONS
    name = settings.RABBITMQ_STREAM
    return [f"{name}-{number}" for number in range(count)] if count else [name]


def stream_of(org_id: uuid.UUID) -> str:
    """The stream, or the partition that an org's events stay in."""
    names = streams()
    return names[org_id.int % len(names)]
