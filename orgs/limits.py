"""Every limit of the service, with its unit and its reason. In the lowest app, so that each app can import it."""

from datetime import timedelta

# ── Events ───────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_TEXT_LENGTH = 128  # characters of clientId and errorCode: names, not texts
MAX_LATENCY_MS = 86_400_000  # a day; longer is a unit mistake
MAX_TOKENS = 2**31 - 1  # fits a PostgreSQL integer
MAX_COST_CENTS = 10**9  # ten million of the currency for one call is a unit mistake
MAX_METADATA_KEYS = 32
MAX_METADATA_BYTES = 4096  # as UTF-8 JSON; raw events stay narrow
MAX_CLOCK_SKEW = timedelta(minutes=5)  # how far ahead of this server's clock an event may lie

# ── The HTTP doors ───────────────────────────────────────────────────────────────────────────────────────────────
MAX_EVENTS_PER_REQUEST = 5_000
MAX_BODY_BYTES = 5 * 1024 * 1024  # of the body as sent, and of what a gzip body expands to
MAX_DRAINED_BYTES = (
    32 * 1024 * 1024
)  # of a body that is too large, read and thrown away so that its sender sees the answer
MAX_GZIP_MEMBERS = 100  # of one body; each costs a copy of the rest
RETRY_AFTER_SECONDS = 5  # told with a 503: about the time a database takes to fail over or restart

# ── The stream ───────────────────────────────────────────────────────────────────────────────────────────────────
MAX_MESSAGE_BYTES = 1024 * 1024  # of one message; larger ones are quarantined
MAX_EVENTS_PER_MESSAGE = 5_000  # more than fit into MAX_MESSAGE_BYTES: an array of more is made of something else

# ── Rolling up ───────────────────────────────────────────────────────────────────────────────────────────────────
MAX_EVENTS_PER_ROLLUP = 500_000  # events; bounds the transaction, its memory and its locks to a few seconds

MAX_CLIENTS_AN_HOUR = 100  # of an org, by calls, and as many by cost: named once the hour is over, the rest together
MAX_ERROR_CODES_AN_HOUR = 50  # likewise
HOUR_CLOSES_AFTER = timedelta(minutes=15)  # its end: what comes later has the hour made again from raw events

# ── Looking for incidents ────────────────────────────────────────────────────────────────────────────────────────
WATCH_AT_ONCE = timedelta(seconds=20)  # of a run that has much to catch up with: rollups and SIGTERM wait for it

# ── Retention ────────────────────────────────────────────────────────────────────────────────────────────────────
ROWS_DELETED_AT_ONCE = 10_000  # bounds a transaction and its locks to about a second

# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_SERIES_POINTS = 50_000  # buckets × models of one answer: about 10 MB of JSON
MAX_PAGE_ROWS = 200  # rows of one table on a page; the CSV has all
DEFAULT_INCIDENT_ROWS = 10_000  # of an incident CSV where no limit is asked for
MAX_INCIDENT_ROWS = 5_000_000  # about 1 GB of CSV, streamed
MAX_INCIDENTS = 1_000  # of one answer: with their causes about 1 MB
MAX_ADMIN_COUNT = 10_000  # rows an admin list counts; beyond, it says "more"

# ── Exports ──────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_EXPORT_DAYS = 31  # of a zone, in one file of usage: the longest month
MAX_SUMMARY_MONTHS = 12  # of one file about all orgs: each is a question for each org
EXPORT_ROWS_AT_ONCE = (
    10_000  # that a file is made of: about 10 MB of objects, and a tenth of a second between two reports
)
MAX_XLSX_ROWS = 1_048_576  # of a sheet, header and totals among them: no spreadsheet opens more
MAX_XLSX_TEXT = 32_767  # characters of a cell, likewise
MAX_XLSX_DIGITS = 15  # of a number that a spreadsheet keeps exactly; a longer one stands as text
EXPORT_PART_BYTES = 5 * 1024 * 1024  # of a file on its way into a bucket: the least that S3 takes; 10,000 make 50 GB
EXPORT_PARTS_AT_ONCE = 2  # on their way: a worker holds about three parts
S3_REQUEST_TIMEOUT = timedelta(seconds=15)  # of one request, a part's too: two at once need a line of 6 Mbit/s
S3_RETRY_TIMEOUT = timedelta(seconds=15)  # a request is repeated for so long: 30 seconds with a last one that hangs
S3_MAX_RETRIES = 100  # of one request: more than that time holds
S3_MAX_BACKOFF = timedelta(seconds=2)  # between two of them: the storage is noticed soon after it is back

MAX_OPEN_EXPORTS = 5  # jobs of an org that are not over: one org's wishes don't fill the queue of all
MAX_EXPORT_MODELS = 1_000  # named in one request; more are all of them
SAME_EXPORT_WITHIN = timedelta(minutes=1)  # asked for twice, it is one job: a double click, a client that sends again
IDEMPOTENCY_KEY_KEPT = timedelta(hours=24)  # for which the same Idempotency-Key names the same job
MAX_IDEMPOTENCY_KEY_LENGTH = 128  # characters
MAX_EXPORT_FAILURES = 3  # attempts that failed by what may pass; then the job has
EXPORT_RETRY_AFTER = timedelta(seconds=15)  # the first failure; four times as long after each further one
EXPORT_PULSE = timedelta(seconds=1)  # between two signs of life of who makes a file, and two reports of how far it is
EXPORT_LEASE = timedelta(seconds=75)  # without a sign of life: who made the file is dead. More than showing it can take
EXPORT_SENT_AGAIN_AFTER = timedelta(
    minutes=1
)  # a job that waits for a worker: its task may be lost; then twice as long
EXPORT_LONGEST = timedelta(minutes=25)  # of one attempt: RabbitMQ takes a task for lost after 30
EXPORT_SHOWN_WITHIN = timedelta(
    seconds=90
)  # by who holds a job's row meanwhile: two requests to S3, 30 seconds each at most
EXPORT_CANCEL_WAIT = timedelta(seconds=2)  # for a job that is being finished just now
EXPORT_REFUSED_SECONDS = 30  # Retry-After where too many are open: a file takes seconds to minutes
MONTH_CLOSES_AFTER = timedelta(hours=1)  # its end, in the org's zone: most of what comes late has come
MONTH_CHANGES_AFTER = timedelta(hours=24)  # its last file, at the earliest: late events come in crowds

# ── Asking too often ─────────────────────────────────────────────────────────────────────────────────────────────
# How often whom is a setting. Here is what follows from how it works.
THROTTLE_TIMEOUT = timedelta(seconds=0.25)  # to connect, and for an answer: together not longer than the cache has
THROTTLE_PAUSE = timedelta(seconds=2)  # for which a process does not ask a Redis that did not answer
CREDENTIAL_REMEMBERED = timedelta(days=1)  # since its last use; then its first request counts for its address again
# Attempts to sign in: (a minute, at once). An address has fewer than an account: one alone can't use up an account's.
SIGN_INS_BY_ADDRESS = (2, 10)  # 2,900 guesses a day, at whatever accounts
SIGN_INS_BY_ACCOUNT = (5, 20)  # 7,200 a day from everywhere together; a new browser finds a token every 12 s
SIGN_INS_BY_BROWSER = (1, 10)  # one in which that account signed in before
KNOWN_BROWSER_REMEMBERED = timedelta(days=365)  # since the last time
ORG_BUSY_SECONDS = 1  # Retry-After where an org has its share of a process's threads: most answers take less

# ── Credentials ──────────────────────────────────────────────────────────────────────────────────────────────────
KEY_USE_RESOLUTION = timedelta(minutes=1)  # how exact "last used" is: at most one write a key and minute
INVITATION_LIFETIME = timedelta(days=7)
MAX_TOKEN_LENGTH = (
    8_000  # characters of a bearer token: what gunicorn takes of one header (8,190 bytes), "Bearer" apart
)
MAX_SUBJECT_LENGTH = 190  # characters of a token's subject: with its kind it fits the audit trail
JWKS_LIFETIME = timedelta(
    minutes=5
)  # of the identity provider's keys, then fetched anew: so long a withdrawn one counts
JWKS_FETCH_INTERVAL = timedelta(
    seconds=10
)  # between two fetches of a process: how long a new key may be unknown, and all that strangers can cause
JWKS_FETCH_TIMEOUT = timedelta(seconds=3)  # of a fetch, discovery included, and of whoever waits for it
JWKS_GRACE = timedelta(hours=6)  # that the last good set counts while none can be had: longer than most outages last
MAX_PROVIDER_BYTES = 256 * 1024  # of any answer of the identity provider: a set of ten keys has 20 KB with certificates
MAX_JWKS_KEYS = 100  # of a set; providers publish two to ten
MIN_RSA_BITS = 2048  # RFC 7518: what RS256 asks of a key
SIGN_IN_FETCH_TIMEOUT = timedelta(seconds=5)  # of a code's exchange for what the provider says of a person, all of it
SIGN_IN_LIFETIME = timedelta(
    minutes=10
)  # from the button to the way back: a password, a second factor, a new telephone
MAX_ISSUER_LENGTH = 255  # characters
MAX_IDENTITY_LENGTH = 255  # characters of a person's subject: OpenID Connect allows no more
MAX_EMAIL_LENGTH = 254  # characters: RFC 5321, and Django's column
MAX_CODE_LENGTH = 4_000  # characters of an authorization code: half of what gunicorn takes of a request line
MAX_HINT_LENGTH = 4_000  # characters of an ID token that goes along in the address of the provider's sign-out

# ── The audit trail ──────────────────────────────────────────────────────────────────────────────────────────────
AUDIT_REFUSALS_EVERY = timedelta(minutes=1)  # one record for an actor, org and scope: a flood does not fill the disk
MAX_FAILED_SIGN_INS_RECORDED = 60  # of one client in that time, whatever names it tries
AUDIT_KEPT_AT_LEAST = timedelta(days=30)  # the database refuses to forget what is younger, whoever asks
MAX_ACCOUNT_LENGTH = 100  # characters of the name that somebody tried to sign in with

# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_JSON_BYTES = 64 * 1024  # of a body other than events: 1,000 model ids are 39 KB
MAX_JSON_DEPTH = 16  # arrays and objects in one another; the deepest request has three
MAX_REQUEST_ID_LENGTH = 128  # characters of an X-Request-ID that is taken over
