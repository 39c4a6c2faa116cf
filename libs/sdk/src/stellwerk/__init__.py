"""Stellwerk: SDK and command line of the open machine-learning platform."""
