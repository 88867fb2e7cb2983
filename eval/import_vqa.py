"""Convert a public VQA set to a benchmark file: LOKI, FakeBench or FakeClue, as published.

    python eval/import_vqa.py --from loki loki/true_or_false.json --images loki/media --out data/vqa/loki.json

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import import_vqa
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(import_vqa)
