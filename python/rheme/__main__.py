"""``python -m rheme``."""

import sys

from rheme.cli import main

sys.exit(main())
