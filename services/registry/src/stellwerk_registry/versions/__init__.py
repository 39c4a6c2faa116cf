"""Datasets, environments and models: named things with numbered versions that never change."""
