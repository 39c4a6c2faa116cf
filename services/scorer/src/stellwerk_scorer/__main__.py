"""`python -m stellwerk_scorer`: one replica's scoring server."""

import os
import sys

# The worker is started by fork and exec, for which gRPC's handlers do nothing but warn. It reads this once.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from stellwerk_scorer.main import main

sys.exit(main(sys.argv[1:]))
