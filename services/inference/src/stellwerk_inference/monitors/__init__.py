"""Monitors: what an endpoint was asked or answered, compared with the data it was trained on."""
