"""The command `plaudit`, also as `python -m plaudit`: says what to install if only the client is."""

from __future__ import annotations

import sys

from plaudit.extras import advice


def main() -> None:
    """Run the command line; exit code 1 with one line if the service's libraries are missing."""
    try:
        from plaudit.cli import main as run
    except ModuleNotFoundError as error:
        if not (why := advice(error)):
            raise
        sys.stderr.write(f"plaudit: {why}\n")
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
