"""OTLP sink, traces and the index of the journal."""
