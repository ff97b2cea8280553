from collections.abc import Iterator

import pytest
from django.conf import LazySettings

from .identity_provider import IdentityProvider


@pytest.fixture(scope="session")
def shared_provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()
    yield provider
    provider.go_away()


@pytest.fixture
def steady_provider(shared_provider: IdentityProvider, settings: LazySettings) -> IdentityProvider:
    """One that the service knows, for tests that do nothing to it."""
    shared_provider.configure(settings)
    return shared_provider


@pytest.fixture
def provider(settings: LazySettings) -> Iterator[IdentityProvider]:
    """One that the service knows, and of its own: at a new address, so that no keys of it are at hand."""
    provider = IdentityProvider()
    provider.configure(settings)
    yield provider
    provider.go_away()
