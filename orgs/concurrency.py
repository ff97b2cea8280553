"""How many requests of one org a process serves at once: one org's heavy questions never hold all of its threads.

Counted by process and not in Redis: what runs out are a process's own threads, and a count of all processes together could find
all that it allows in one of them. A thread serves one request at a time, from the moment at which it is known whose data is
asked for until the answer is sent or given up; so there is nothing that a request, however it ends, could leave behind.
"""

import threading
import uuid
from typing import Any

from django.conf import settings
from django.core.signals import request_finished, request_started

_serving: dict[int, str] = {}  # by thread: whose data its request is about
_lock = threading.Lock()


class TooManyAtOnce(Exception):
    """This process serves as many requests of the org as it may."""


def enter(org_id: uuid.UUID | str) -> None:
    """The request of this thread is about this org's data, until it ends. Raises `TooManyAtOnce`."""
    me = threading.get_ident()
    with _lock:
        _serving.pop(me, None)
        if 0 < settings.ORG_CONCURRENCY <= list(_serving.values()).count(str(org_id)):
            raise TooManyAtOnce
        _serving[me] = str(org_id)


def _leave(**kwargs: Any) -> None:
    with _lock:
        _serving.pop(threading.get_ident(), None)


def count_requests() -> None:
    """Have the ends of requests counted. A response that a server never closed ends with its thread's next request."""
    request_started.connect(_leave, dispatch_uid="orgs.concurrency")
    request_finished.connect(_leave, dispatch_uid="orgs.concurrency")
