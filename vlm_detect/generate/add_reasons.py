"""Add reasons for the labels to a finished dataset. The same command resumes.

    vlm-detect add-reasons data/cifake --out data/cifake_reasons
    vlm-detect add-reasons data/pairs --out data/pairs_reasons --reasons measured,edit --workers 4
    vlm-detect add-reasons data/pairs --out data/pairs_reasons --reasons measured,edit,teacher \\
        --teacher_endpoint http://localhost:8000/v1 --teacher qwen2.5-vl --judge nano --dry_run
    vlm-detect add-reasons data/fakeclue --out data/fakeclue_reasons --reasons imported \\
        --texts FakeClue/train.json --texts_layout conversations

A measured reason says by how much an image's pixels differ from those of photos of its size; only measures that
separate the classes of the training split are used. A reason of an edit gives its operation and place. A teacher is any
vision-language model that sees photo and twin with their labels; its sentences are kept if two samples agree and a
judge without the label denies them for the other image. The same check applies to texts from published sets.
docs/explanations.md has the kinds and the columns.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.generate.options import Upload
from vlm_detect.generate.reason_options import ReasonsConfig, TeacherConfig, TextsConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    dataset: str = field(metadata={"positional": True, "help": "A pair or image dataset: a folder, or a Hub id."})
    out: str = field(metadata={"help": "Folder of the new dataset."})
    dry_run: bool = field(default=False, metadata={"help": "Print what would be requested from which model, and stop."})


def main(argv: list[str]) -> None:
    stages = [Config, Launch, Upload, ReasonsConfig, TeacherConfig, TextsConfig]
    config, launch, upload, reasons, teacher, texts = parse_config(stages, argv, doc=__doc__)
    from vlm_detect.generate.build import build_dataset
    from vlm_detect.generate.reason_rows import pack_reasons
    from vlm_detect.generate.reasons import Wanted, announce, find_reasons, plan_reasons

    out = Path(config.out)
    plan = plan_reasons(config.dataset, out, Wanted(reasons, teacher, texts))
    for line in announce(plan):
        print(line, file=sys.stdout if config.dry_run else sys.stderr)
    if config.dry_run:
        return
    build_dataset(
        out,
        plan.settings,
        steps=lambda work: find_reasons(plan, work, launch),
        pack=lambda work: pack_reasons(plan, work, out),
        push_to_hub=upload.push_to_hub,
    )


if __name__ == "__main__":
    run_main(main)
