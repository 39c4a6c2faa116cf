"""What Stellwerk costs and how fast it is, measured; see `suite.py`."""
