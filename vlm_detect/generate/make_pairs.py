"""Make a pair dataset from photos: caption, render and write. The same command resumes.

    vlm-detect make-pairs --images photos/ --out data/pairs
    vlm-detect make-pairs --images photos/ --generator stabilityai/stable-diffusion-3.5-medium --twins vae
    vlm-detect make-pairs --images owner/dataset::train:image --limit 1000 --workers 4
    vlm-detect make-pairs --images photos/ --generator_endpoint http://host:8000/v1 --generator NAME --twins caption
    vlm-detect make-pairs --images photos/ --config 24gb --dry_run
    vlm-detect make-pairs --images photos/ --prompts prompts.yaml     # images without pairs; template: configs prompts
    vlm-detect make-pairs --images photos/ --executor slurm --workers 16 --gpus 1 --slurm_partition gpu

Unfinished work is in OUT.work and is removed when OUT is complete. Settings of the generator that are not given come
from its file in vlm_detect/configs/generators. Slurm jobs are only queued: run the same command again when they are
done. The run ends with an audit; `vlm-detect report OUT` shows the dataset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vlm_detect.config import CONFIGS, parse_config
from vlm_detect.errors import run_main
from vlm_detect.generate.options import CaptionConfig, PackConfig, RenderConfig, SourceConfig, TwinKinds, Upload
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    out: str = field(default="data/pairs", metadata={"help": "Folder of the pair dataset."})
    keep_work: bool = field(default=False, metadata={"help": "Keep OUT.work with the captions and raw twins."})
    dry_run: bool = field(
        default=False, metadata={"help": "Look the models up, print the plan and its cost, and stop."}
    )


def main(argv: list[str]) -> None:
    stages = [Config, Launch, Upload, SourceConfig, CaptionConfig, RenderConfig, PackConfig, EncodeConfig]
    config, launch, upload, source, caption, render, pack, encode = parse_config(stages, argv, doc=__doc__)
    render.check_installed()
    from vlm_detect.generate.build import build_dataset, finished, work_folder
    from vlm_detect.generate.caption_step import caption_photos, check_captioner, name_captioner, plan_captions
    from vlm_detect.generate.cost import describe_plan
    from vlm_detect.generate.dataset_files import is_finished
    from vlm_detect.generate.endpoint_generator import disclosure
    from vlm_detect.generate.pack import pack_pairs
    from vlm_detect.generate.render_step import check_generator, complete, plan_renders, render_twins
    from vlm_detect.jobs.shards import begin

    out = Path(config.out)
    caption = replace(caption, captioner=name_captioner(caption.captioner, caption.prompts))
    captions_plan = plan_captions(source, caption)
    render = complete(render, CONFIGS / "generators")
    if caption.prompts:
        render = replace(render, twins=TwinKinds("caption"))  # the only kind that needs no photo
    renders_plan = plan_renders(captions_plan, render)
    settings = {"caption": asdict(captions_plan), "render": asdict(renders_plan)}
    settings |= {"pack": asdict(pack), "encode": asdict(encode)}
    if config.dry_run:
        if is_finished(out, settings):
            print(finished(out))
            return
        check_captioner(caption.captioner)
        check_generator(render)
        print(describe_plan(captions_plan, renders_plan, render, pack, encode, work_folder(out)))
        return

    def steps(work: Path) -> str | None:
        check_captioner(caption.captioner)
        check_generator(render)
        begin(work / "captions", captions_plan)
        begin(work / "renders", renders_plan)
        print(f"captions of {captions_plan.items} photos, by {caption.captioner} ...", flush=True)
        captioning = caption_photos(source, caption, captions_plan, work / "captions", launch)
        print(f"twins ({', '.join(render.twins.kinds)}), by {render.generator} ...", flush=True)
        if render.generator_endpoint:
            print(disclosure(render), flush=True)
        return render_twins(work / "captions", render, renders_plan, work / "renders", launch, after=captioning)

    build_dataset(
        out,
        settings,
        steps=steps,
        pack=lambda work: pack_pairs(work / "renders", out, pack, encode, settings),
        push_to_hub=upload.push_to_hub,
        keep_work=config.keep_work,
    )


if __name__ == "__main__":
    run_main(main)
