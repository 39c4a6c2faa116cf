"""Experiments, runs, snapshots, metrics, logs and artifacts."""
