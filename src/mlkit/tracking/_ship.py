"""The shipper's process: `python -m mlkit.tracking._ship RUN_DIR`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlkit.tracking._shipper import ship


def main() -> None:
    """Deliver the run in the folder that the command line names."""
    # A sink may shorten the patience of its client here, where Lane is the one that retries.
    os.environ["MLKIT_SHIPPER"] = "1"
    ship(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
