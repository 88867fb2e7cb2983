"""Step 2 of 3: make the twins. Captioned photos in, photos with twins out; the same command resumes.

    python data_gen/render.py --captions work/captions --out work/renders \\
        --generator stabilityai/stable-diffusion-3.5-large --twins caption,vae

What is not given (steps, guidance, size, ...) is taken from the file in data_gen/configs that is for the generator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config, write_run_json
from vlm_detect.data.extras import require
from vlm_detect.errors import run_main

PRESETS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Config:
    captions: str = field(metadata={"help": "Output of data_gen/caption.py."})
    out: str = field(metadata={"help": "Folder of the rendered twins."})
    workers: int = field(default=1, metadata={"help": "Processes; one a GPU."})


def main(argv: list[str]) -> None:
    require("data", "datatrove", "diffusers", "imagehash")
    from vlm_detect.data.render_step import RenderConfig, check_generator, complete, plan_renders, render_twins
    from vlm_detect.data.shards import begin, check_finished

    config, render = parse_config([Config, RenderConfig], argv, doc=__doc__)
    captions, out = Path(config.captions), Path(config.out)
    before = check_finished(captions)
    render = complete(render, PRESETS)
    plan = plan_renders(before, render)
    check_generator(render)
    begin(out, plan)
    render_twins(captions, render, plan, out, config.workers)
    write_run_json(out, {"caption": before.settings, "render": asdict(render)})
    print(f"{out}: twins of {plan.items} photos in {plan.shards} shards")


if __name__ == "__main__":
    run_main(main)
