"""``python -m rheme``, and the script ``rheme``."""

import sys


def run() -> int:
    """The command line; Ctrl-C while it is still being imported ends it quietly."""
    try:
        from rheme.cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
