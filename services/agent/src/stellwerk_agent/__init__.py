"""The management code that runs on a compute: prepare, fetch, run, collect."""
