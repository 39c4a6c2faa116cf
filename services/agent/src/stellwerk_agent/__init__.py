"""The management code that runs on a compute: prepare, fetch, run, collect."""

import os

# Must be set before grpc is imported: its fork handlers now and then kill a child between fork and
# exec, and this process starts many children, none of which uses grpc before it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
