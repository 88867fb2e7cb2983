"""Photos in, a pair dataset out: caption, render and pack in a row. The same command resumes.

    python data_gen/make_pairs.py --images photos/ --out data/pairs
    python data_gen/make_pairs.py --images photos/ --generator stabilityai/stable-diffusion-3.5-medium --twins vae
    python data_gen/make_pairs.py --images owner/dataset::train:image --limit 1000 --workers 4

Unfinished work lies in OUT.work and is removed when OUT stands. What is not given of the generator's settings is taken
from the file in data_gen/configs that is for it.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.data.extras import require
from vlm_detect.errors import run_main

PRESETS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Config:
    out: str = field(default="data/pairs", metadata={"help": "Folder of the pair dataset."})
    workers: int = field(default=1, metadata={"help": "Processes; one a GPU."})
    keep_work: bool = field(default=False, metadata={"help": "Keep OUT.work with the captions and raw twins."})


def main(argv: list[str]) -> None:
    require("data", "datatrove", "diffusers", "imagehash")
    from vlm_detect.data.caption_step import CaptionConfig, SourceConfig, caption_photos, name_captioner, plan_captions
    from vlm_detect.data.dataset_files import is_finished
    from vlm_detect.data.encode import EncodeConfig
    from vlm_detect.data.pairs import PackConfig, pack_pairs
    from vlm_detect.data.render_step import RenderConfig, check_generator, complete, plan_renders, render_twins
    from vlm_detect.data.shards import begin

    stages = [Config, SourceConfig, CaptionConfig, RenderConfig, PackConfig, EncodeConfig]
    config, source, caption, render, pack, encode = parse_config(stages, argv, doc=__doc__)
    out = Path(config.out)
    work = out.with_name(f"{out.name}.work")

    caption = replace(caption, captioner=name_captioner(caption.captioner))
    captions_plan = plan_captions(source, caption)
    render = complete(render, PRESETS)
    renders_plan = plan_renders(captions_plan, render)
    settings = {"caption": asdict(captions_plan), "render": asdict(renders_plan)}
    settings |= {"pack": asdict(pack), "encode": asdict(encode)}
    if is_finished(out, settings):
        print(f"{out}: finished, nothing left to do")
        return

    check_generator(render)
    begin(work / "captions", captions_plan)
    begin(work / "renders", renders_plan)
    caption_photos(source, caption, captions_plan, work / "captions", config.workers)
    render_twins(work / "captions", render, renders_plan, work / "renders", config.workers)
    print(f"{out}: {pack_pairs(work / 'renders', out, pack, encode, settings)}")
    if not config.keep_work:
        shutil.rmtree(work)


if __name__ == "__main__":
    run_main(main)
