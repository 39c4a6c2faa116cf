"""Scoring: from a key and an endpoint to a replica that answers. A faster router can take this place."""
