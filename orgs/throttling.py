"""How often somebody may ask: token buckets in Redis.

A bucket is one number: the moment at which it is full again. What lies between now and then are the tokens that are
missing. A full bucket needs no key, so each expires by itself. Time is Redis's own, and one script takes, so that any number of
processes on any number of machines share one bucket.

Where Redis does not answer, everybody may: limits are no reason for an outage.
"""

import functools
import hashlib
import hmac
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import structlog
from django.conf import settings
from prometheus_client import Counter
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .limits import CREDENTIAL_REMEMBERED, THROTTLE_PAUSE, THROTTLE_TIMEOUT

logger = structlog.get_logger(__name__)

REFUSED = Counter("analytics_throttled", "Requests refused because somebody asked too often", ("limit",))
UNASKED = Counter("analytics_throttle_unavailable", "Requests let through because Redis did not answer", ())

_PREFIX = "analytics:throttle:"
_LOG_EVERY = 60.0  # seconds

# A token of each bucket of KEYS, or of none. Where KEYS[1] names a credential that is known, its caller's bucket stands in
# for all of them: so one round trip is enough, though who calls is found out only later.
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local known, buckets = 0, {}
local caller = KEYS[1] ~= '' and redis.call('GET', KEYS[1])
if caller then
  known = 1
  redis.call('EXPIRE', KEYS[1], ARGV[1])
  buckets[1] = {ARGV[2] .. caller .. ':' .. ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])}
else
  for i = 2, #KEYS do
    buckets[i - 1] = {KEYS[i], tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])}
  end
end
local first = {1, known, 0, 0, 0, 0}
local full = {}
for i, bucket in ipairs(buckets) do
  local key, interval, size = bucket[1], bucket[2], bucket[3]
  local capacity = interval * size
  -- Never more than all: the clock of a Redis that took over may be behind.
  local missing = math.min(math.max((tonumber(redis.call('GET', key) or 0)) - now, 0), capacity)
  if interval > 0 and missing + interval > capacity then
    return {0, known, size, 0, missing + interval - capacity, missing}
  end
  missing = missing + interval
  full[i] = missing
  if i == 1 and interval > 0 then
    first = {1, known, size, math.floor((capacity - missing) / interval), 0, missing}
  end
end
for i, bucket in ipairs(buckets) do
  if bucket[2] > 0 then
    redis.call('SET', bucket[1], string.format('%.0f', now + full[i]), 'PX', string.format('%.0f', full[i] / 1000 + 1))
  end
end
return first
"""

# A token comes back: what it was taken for turned out not to count.
_RETURN = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
for i, key in ipairs(KEYS) do
  local missing = tonumber(redis.call('GET', key) or 0) - now - tonumber(ARGV[i])
  if missing > 0 then
    redis.call('SET', key, string.format('%.0f', now + missing), 'PX', string.format('%.0f', missing / 1000 + 1))
  else
    redis.call('DEL', key)
  end
end
"""


@dataclass(frozen=True)
class Rate:
    """So many a minute, and so many at once. None a minute: no limit."""

    per_minute: int
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds until a token is there again."""
        return max(1, round(60_000_000 / self.per_minute)) if self.per_minute else 0


@dataclass(frozen=True)
class Bucket:
    name: str
    rate: Rate

    @property
    def key(self) -> str:
        return _PREFIX + self.name


@dataclass(frozen=True)
class Caller:
    """A credential that somebody presents, and what is its caller's where it is known: nobody has looked at it yet."""

    credential: str
    kind: str
    rate: Rate


@dataclass(frozen=True)
class Taken:
    """What the script said. `limit` is 0 where this caller has none."""

    is_allowed: bool
    is_known: bool
    limit: int
    remaining: int
    retry_after: int  # seconds, rounded up
    reset: int  # seconds until the bucket is full, rounded up

    @property
    def headers(self) -> Mapping[str, str]:
        if not self.limit:
            return {}
        told = {"RateLimit-Limit": self.limit, "RateLimit-Remaining": self.remaining, "RateLimit-Reset": self.reset}
        if not self.is_allowed:
            told["Retry-After"] = self.retry_after
        return {name: str(value) for name, value in told.items()}


def take(buckets: Sequence[Bucket], caller: Caller | None = None) -> Taken | None:
    """A token of each bucket, or of none; of the caller's own instead, where the credential is a known one.

    None where there is no limit, or Redis does not answer: whoever asks goes on.
    """
    if not any(rate.per_minute for rate in (*(b.rate for b in buckets), *([caller.rate] if caller else []))):
        return None
    keys = [_credential(caller.credential) if caller else "", *(bucket.key for bucket in buckets)]
    own = caller.rate if caller else Rate(0, 1)
    arguments: list[str | int] = [_SECONDS_KNOWN, _PREFIX, caller.kind if caller else "", own.interval, own.burst]
    for bucket in buckets:
        arguments += [bucket.rate.interval, bucket.rate.burst]
    found = _run(_TAKE, keys, arguments)
    if found is None:
        UNASKED.inc()
        return None
    is_allowed, is_known, limit, remaining, wait, missing = found
    return Taken(
        bool(is_allowed), bool(is_known), limit, remaining, math.ceil(wait / 1_000_000), math.ceil(missing / 1_000_000)
    )


def give_back(buckets: Sequence[Bucket]) -> None:
    """What `take` took of these."""
    limited = [bucket for bucket in buckets if bucket.rate.per_minute]
    if limited:
        _run(_RETURN, [bucket.key for bucket in limited], [bucket.rate.interval for bucket in limited])


# ── Credentials ──────────────────────────────────────────────────────────────────────────────────────────────────
_SECONDS_KNOWN = int(CREDENTIAL_REMEMBERED.total_seconds())


def remember(credential: str, name: str) -> None:
    """This credential was found to be good, and whose it is. It takes from the bucket of that name from now on."""
    _asked(lambda client: client.set(_credential(credential), name, ex=_SECONDS_KNOWN))


def forget(credential: str) -> None:
    """This credential is good no longer."""
    _asked(lambda client: client.delete(_credential(credential)))


def digest(text: str) -> str:
    """Stands for a secret, or an address, in a key of Redis: without this service's own secret nobody can try out which."""
    return hmac.digest(settings.SECRET_KEY.encode(), text.encode(errors="surrogateescape"), hashlib.sha256).hex()


def _credential(credential: str) -> str:
    return f"{_PREFIX}credential:{digest(credential)}"


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class _Outage:
    """Whether Redis answers, as far as this process knows."""

    until: float = 0.0  # until then it is not asked
    said: float = -math.inf  # when the log was told


_outage = _Outage()


@functools.lru_cache(maxsize=4)
def _client(url: str) -> redis.Redis:
    timeout = THROTTLE_TIMEOUT.total_seconds()
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),  # the client's own repeats would add seconds
    )


@functools.lru_cache(maxsize=8)
def _script(url: str, text: str) -> Any:
    return _client(url).register_script(text)  # sent by its hash


def _run(text: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
    return _asked(lambda client: _script(settings.REDIS_URL, text)(keys=keys, args=arguments))


def _asked(question: Any) -> Any:
    """What Redis answers; None where it does not, or did not a moment ago."""
    now = time.monotonic()
    if now < _outage.until:
        return None
    try:
        return question(_client(settings.REDIS_URL))
    except (RedisError, OSError) as error:
        now = time.monotonic()
        _outage.until = now + THROTTLE_PAUSE.total_seconds()
        if now - _outage.said >= _LOG_EVERY:
            _outage.said = now
            logger.warning("throttling_unavailable", error=error, note="requests go through without limits")
        return None
