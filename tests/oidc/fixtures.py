"""`openid`: makes real OpenID providers; loaded by the root conftest."""

from collections.abc import Callable

import pytest

from tests.oidc import installation
from tests.oidc.provider import OpenIdProvider


@pytest.fixture(scope="session")
def openid() -> Callable[..., OpenIdProvider]:
    """A provider that does not run yet, for the redirect addresses of a gateway."""
    node = installation.node()
    modules = installation.modules(node)

    def make(*redirect_uris: str) -> OpenIdProvider:
        return OpenIdProvider(node, modules, list(redirect_uris))

    return make


def pytest_collection_finish(session: pytest.Session) -> None:
    """Installs before the first test: on a new machine that takes longer than a test may."""
    wanted = any("openid" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        installation.modules(installation.node())
