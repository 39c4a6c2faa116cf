"""Spans: taken in by OTLP, kept for some days, read as traces."""
