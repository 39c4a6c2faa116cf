"""Real servers for every test of the repository: see `stellwerk_launcher.testing` and tests/oidc."""

pytest_plugins = ["stellwerk_launcher.testing", "tests.oidc.fixtures"]
