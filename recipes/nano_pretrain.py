"""Make the nano family: small models of exactly the real architectures, for rehearsal, teaching and tests.

    python recipes/nano_pretrain.py --config nano_sd35

The program is vlm_detect/nano/pretrain.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.nano.pretrain import main

if __name__ == "__main__":
    run_main(main)
