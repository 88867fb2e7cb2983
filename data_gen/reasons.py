"""A finished dataset in, the same dataset with reasons for its labels out. The same command resumes.

    python data_gen/reasons.py data/cifake --out data/cifake_reasons
    python data_gen/reasons.py data/pairs --out data/pairs_reasons --reasons measured,edit --workers 4

A measured reason says by how much an image's pixels differ from those of photos of its size; only measures speak that
tell the classes of the training split apart. A reason of an edit says what was done, and where. docs/explanations.md
has the kinds and the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main


@dataclass(frozen=True)
class Config:
    dataset: str = field(metadata={"positional": True, "help": "A pair or image dataset: a folder, or a Hub id."})
    out: str = field(metadata={"help": "Folder of the new dataset."})


def main(argv: list[str]) -> None:
    from vlm_detect.generate.build import build_dataset
    from vlm_detect.generate.options import ReasonsConfig, Upload
    from vlm_detect.generate.reasons import find_reasons, pack_reasons, plan_reasons
    from vlm_detect.jobs.launch import Launch

    config, launch, upload, reasons = parse_config([Config, Launch, Upload, ReasonsConfig], argv, doc=__doc__)
    out = Path(config.out)
    plan = plan_reasons(config.dataset, out, reasons)
    build_dataset(
        out,
        plan.settings,
        steps=lambda work: find_reasons(plan, reasons, work, launch),
        pack=lambda work: pack_reasons(plan, reasons, work, out),
        push_to_hub=upload.push_to_hub,
    )


if __name__ == "__main__":
    run_main(main)
