"""``python bench/patch2021``: Python puts this folder on the path, and what is imported lies in the one above."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from patch2021.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
