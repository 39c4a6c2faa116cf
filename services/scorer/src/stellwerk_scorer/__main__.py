"""`python -m stellwerk_scorer`: one replica's scoring server."""

import sys

from stellwerk_scorer.main import main

sys.exit(main())
