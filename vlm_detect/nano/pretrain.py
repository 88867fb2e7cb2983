"""Make the nano family: small models of exactly the real architectures, for rehearsal, teaching and tests.

    python recipes/nano_pretrain.py --config nano_sd35         # the renderer, and its judge
    python recipes/nano_pretrain.py --config nano_moondream    # the captioner
    python recipes/nano_pretrain.py --config nano_tinyllava    # another, from what that one knows

Every stage trains, measures and exports by itself, and the same command resumes where it stopped; `--install` copies
the result into the package. It reads real photographs only (CIFAR-10, or the real half of CIFAKE in $VLM_DETECT_DATA):
a base model that had seen fakes could not show what finetuning adds.
"""

from __future__ import annotations

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.nano.config import NanoConfig


def main(argv: list[str]) -> None:
    (config,) = parse_config([NanoConfig], argv, doc=__doc__)
    from vlm_detect.nano.stages import run_stages  # late: with torch, which --help does without

    run_stages(config)


if __name__ == "__main__":
    run_main(main)
