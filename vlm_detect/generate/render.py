"""Step 2 of 3: render the twins of captioned photos. The same command resumes.

    vlm-detect render --captions work/captions --out work/renders \\
        --generator stabilityai/stable-diffusion-3.5-large --twins caption,vae
    vlm-detect render --row ID --pairs data/pairs --out twin.jpg    # reproduce one twin or edit from its receipt

Defaults of steps, guidance, size, ... come from the generator's preset in vlm_detect/configs/generators.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import CONFIGS, parse_config, write_run_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.generate.options import RenderConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    out: str = field(metadata={"help": "Folder of the rendered twins; with --row: the image file."})
    captions: str | None = field(default=None, metadata={"help": "Output of vlm-detect caption."})
    row: str | None = field(default=None, metadata={"help": "Reproduce only the image of this row (pair_id or id)."})
    pairs: str = field(default="data/pairs", metadata={"help": "The dataset of --row."})
    photo: str | None = field(default=None, metadata={"help": "The source photo of --row, if it has moved."})
    donor: str | None = field(default=None, metadata={"help": "The donor photo of --row, if it is a splice."})

    def __post_init__(self) -> None:
        if self.captions is None and self.row is None:
            raise UserError("--captions FOLDER is missing: the output of vlm-detect caption (or --row PAIR_ID)")


def main(argv: list[str]) -> None:
    config, launch, render = parse_config([Config, Launch, RenderConfig], argv, doc=__doc__)
    render.check_installed()
    from vlm_detect.generate.build import queued
    from vlm_detect.generate.endpoint_generator import disclosure
    from vlm_detect.generate.render_step import check_generator, complete, plan_renders, render_twins
    from vlm_detect.jobs.shards import begin, check_finished

    out = Path(config.out)
    if config.row:
        from vlm_detect.generate.receipts import render_row

        print(f"{out}: {render_row(Path(config.pairs), config.row, out, photo=config.photo, donor=config.donor)}")
        return
    captions = Path(str(config.captions))
    before = check_finished(captions, "caption")
    render = complete(render, CONFIGS / "generators")
    plan = plan_renders(before, render)
    check_generator(render)
    begin(out, plan)
    if render.generator_endpoint:
        print(disclosure(render), flush=True)
    if job := render_twins(captions, render, plan, out, launch):
        print(queued(out, job))
        return
    write_run_json(out, {"caption": before.settings, "render": asdict(render)})
    print(f"{out}: twins of {plan.items} photos in {plan.shards} shards")


if __name__ == "__main__":
    run_main(main)
