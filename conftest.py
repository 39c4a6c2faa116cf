"""Real servers for every test of the repository: see `stellwerk_launcher.testing`."""

pytest_plugins = ["stellwerk_launcher.testing"]
