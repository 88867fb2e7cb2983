"""Make the nano family: small models of exactly the real architectures, for rehearsal, teaching and tests.

    python recipes/nano_pretrain.py --config nano_sd35         # the renderer, and its judge
    python recipes/nano_pretrain.py --config nano_moondream    # the captioner
    python recipes/nano_pretrain.py --config nano_tinyllava    # another captioner, which starts from the first

Every stage trains, measures and exports on its own, and the same command resumes an interrupted run; `--install` copies
the result into the package. It reads real photographs only (CIFAR-10, or the real half of CIFAKE in $VLM_DETECT_DATA):
on a base model that had seen fakes, the effect of finetuning could not be measured.
"""

from __future__ import annotations

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.nano.config import NanoConfig


def main(argv: list[str]) -> None:
    (config,) = parse_config([NanoConfig], argv, doc=__doc__)
    from vlm_detect.nano.stages import run_stages  # late: it loads torch, which --help does not need

    run_stages(config)


if __name__ == "__main__":
    run_main(main)
