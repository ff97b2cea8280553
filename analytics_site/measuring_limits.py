"""What it costs to hold a request against its limit: the usage endpoint with and without, in turns."""

import uuid
from datetime import timedelta
from statistics import median
from urllib.parse import urlencode

from django.conf import settings
from django.test import Client, override_settings
from django.utils import timezone

from usage.windows import floor_hour

from .measuring import Line, door_client, timed
from .rig import SCRATCH_REDIS, UNLIMITED, redis_url

REQUESTS = 400  # of each; both of a pair ask for the same hour
PLENTY = 10**8  # a minute, and at once: every step of a limit, and no refusal


def measure_limits(org_id: uuid.UUID) -> tuple[list[Line], dict[str, float]]:
    """Middleware to middleware, with the Redis of the settings; the median of either."""
    client = door_client(org_id)
    end = floor_hour(timezone.now())
    query = urlencode({"start": (end - timedelta(hours=1)).isoformat(), "end": end.isoformat(), "granularity": "hour"})
    address = f"/analytics/v1/orgs/{org_id}/usage?{query}"
    names = [name for name in UNLIMITED if name.startswith("RATE")]
    limited = dict.fromkeys(names, PLENTY) | {f"{name}_BURST": PLENTY for name in names} | {"ORG_CONCURRENCY": 4}
    unlimited = limited | UNLIMITED  # as many: changing settings takes time too
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with override_settings(REDIS_URL=redis_url(SCRATCH_REDIS)):
        for number in range(2 * REQUESTS + 20):
            is_limited = number % 2 == 0
            with override_settings(**(limited if is_limited else unlimited)):
                took = timed(_ask, client, address, is_limited)
            if number >= 20:  # what first answers load
                seconds[is_limited].append(took)
    with_limit, without = (1000 * median(seconds[is_limited]) for is_limited in (True, False))
    line = Line(
        "usage API, an hour, with its limit", f"{with_limit:.2f} ms", "without",
        f"{without:.2f} ms", f"{with_limit / without:.2f}", "≤ 1 ms more",
    )  # fmt: skip
    return [line], {"limits_cost": round(with_limit - without, 2)}


def _ask(client: Client, address: str, is_limited: bool) -> None:
    answer = client.get(address)
    assert answer.status_code == 200, answer.content
    assert ("RateLimit-Remaining" in answer) == is_limited, settings.RATE_LIMIT_REQUESTS
