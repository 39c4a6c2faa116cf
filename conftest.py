"""Real servers for every test of the repository: see `stellwerk_launcher.testing` and tests/oidc."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["stellwerk_launcher.testing", "tests.oidc.fixtures"]

# No test fails because of the hour or of what else the machine does: the examples of a property are the same
# ones each time, and none of them has to be quick. `--hypothesis-profile=search` looks for others.
_HASTE = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=_HASTE)
settings.register_profile("search", deadline=None, max_examples=2_000, suppress_health_check=_HASTE)
settings.load_profile("same")

# What a shell starts in the background ignores interrupts, and commands that tests interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
