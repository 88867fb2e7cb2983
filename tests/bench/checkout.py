"""Importing this makes the folder above `tests` importable, so that a bench runs without PYTHONPATH from anywhere.

    import checkout  # before anything of `tests` or `vlm_detect`

The package that is measured is then this checkout's, whichever one is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
