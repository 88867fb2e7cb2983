"""Step 1 of 3: caption photos. The same command resumes.

vlm-detect caption --images photos/ --out work/captions --captioner vikhyatk/moondream2 --workers 2
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vlm_detect.config import parse_config, write_run_json
from vlm_detect.errors import run_main
from vlm_detect.extras import require
from vlm_detect.generate.options import CaptionConfig, SourceConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    out: str = field(metadata={"help": "Folder of the captioned photos."})


def main(argv: list[str]) -> None:
    config, launch, source, caption = parse_config([Config, Launch, SourceConfig, CaptionConfig], argv, doc=__doc__)
    require("data", "imagehash")
    from vlm_detect.generate.build import queued
    from vlm_detect.generate.caption_step import caption_photos, name_captioner, plan_captions
    from vlm_detect.jobs.shards import begin

    caption = replace(caption, captioner=name_captioner(caption.captioner, caption.prompts))
    plan = plan_captions(source, caption)
    out = Path(config.out)
    begin(out, plan)
    if job := caption_photos(source, caption, plan, out, launch):
        print(queued(out, job))
        return
    write_run_json(out, {"source": asdict(source), "caption": asdict(caption)})
    print(f"{out}: {plan.items} photos in {plan.shards} shards")


if __name__ == "__main__":
    run_main(main)
