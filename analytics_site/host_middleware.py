"""Which hosts are answered to: those of `ALLOWED_HOSTS`, but for what is asked from inside."""

from django.http import HttpRequest, HttpResponsePermanentRedirect
from django.middleware.common import CommonMiddleware

# Prometheus and probes name a process by an address of its own, of a container or a pod, which no setting can list. Nothing in
# these answers depends on the host.
INSIDE = ("/metrics", "/analytics/v1/status/healthz", "/analytics/v1/status/readyz")


class HostMiddleware(CommonMiddleware):
    """Django's own, which refuses other hosts."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path in INSIDE else super().process_request(request)
