"""The complete workflow on bundled photographs with the nano models: what `make demo` runs, and a template for real
use.

    python recipes/demo.py [--out runs/demo]

The program is vlm_detect/apps/demo.py; `--help` says more.
"""

from vlm_detect.apps.demo import main
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(main)
