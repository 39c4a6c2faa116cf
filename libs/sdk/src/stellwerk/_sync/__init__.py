"""The blocking face of `stellwerk._async`: generated, all but `core.py`."""
