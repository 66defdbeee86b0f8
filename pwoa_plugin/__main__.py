"""``pwoa``, and ``python -m pwoa_plugin``."""

from __future__ import annotations

import sys

from ._interrupt import leave_at_once

leave_at_once()


def main() -> int:
    """See `pwoa_plugin.cli.main`."""
    from .cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
