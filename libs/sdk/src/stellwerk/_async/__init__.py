"""The client, written once. `scripts/generate_sync.py` derives `stellwerk._sync` from it."""
