"""Make a pair dataset from photos: caption, render and write. The same command resumes.

    vlm-detect make-pairs --images photos/ --out data/pairs
    vlm-detect make-pairs --images photos/ --generator stabilityai/stable-diffusion-3.5-medium --twins vae
    vlm-detect make-pairs --images owner/dataset::train:image --limit 1000 --workers 4
    vlm-detect make-pairs --images photos/ --generator_endpoint http://host:8000/v1 --generator NAME --twins caption
    vlm-detect make-pairs --images photos/ --config 24gb --dry_run
    vlm-detect make-pairs --images photos/ --generators A B C --hold_out generator=C      # each a share
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
from vlm_detect.errors import UsageError, UserError, run_main
from vlm_detect.generate.choices import Share, TwinKinds
from vlm_detect.generate.options import CaptionConfig, PackConfig, RenderConfig, SourceConfig, Upload
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    out: str = field(default="data/pairs", metadata={"help": "Folder of the pair dataset."})
    generators: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Several, in place of --generator: each renders an equal share of the photos, chosen by their hash."
        },
    )
    keep_work: bool = field(default=False, metadata={"help": "Keep OUT.work with the captions and raw twins."})
    dry_run: bool = field(
        default=False, metadata={"help": "Look the models up, print the plan and its cost, and stop."}
    )

    def __post_init__(self) -> None:
        if repeated := {name for name in self.generators if self.generators.count(name) > 1}:
            raise UserError(f"--generators {' '.join(sorted(repeated))}: given twice")

    def each_share(self, render: RenderConfig) -> list[RenderConfig]:
        """The settings of each generator: `render` itself, or one for each of `generators` with its share."""
        if not self.generators:
            return [render]
        for name, absent in (("generator", "auto"), ("share", "")):
            if (value := getattr(render, name)) != absent:
                raise UsageError(f"--{name} {value}: cannot be combined with --generators; give one of the two")
        return [
            replace(render, generator=name, share=Share(f"{place}/{len(self.generators)}"))
            for place, name in enumerate(self.generators, start=1)
        ]


def main(argv: list[str]) -> None:
    stages = [Config, Launch, Upload, SourceConfig, CaptionConfig, RenderConfig, PackConfig, EncodeConfig]
    config, launch, upload, source, caption, render, pack, encode = parse_config(stages, argv, doc=__doc__)
    render.check_installed()
    from vlm_detect.generate.build import build_dataset, finished, settings_of_renders, work_folder
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
    renders = [complete(one, CONFIGS / "generators") for one in config.each_share(render)]
    if caption.prompts:
        renders = [replace(one, twins=TwinKinds("caption")) for one in renders]  # the only kind that needs no photo
    plans = [plan_renders(captions_plan, one) for one in renders]
    folders = ["renders"] if len(renders) == 1 else [f"renders_{place + 1}" for place in range(len(renders))]
    settings = {"caption": asdict(captions_plan)} | settings_of_renders(plans)
    settings |= {"pack": asdict(pack), "encode": asdict(encode)}
    if config.dry_run:
        if is_finished(out, settings):
            print(finished(out))
            return
        check_captioner(caption.captioner)
        for one in renders:
            check_generator(one)
        steps_of_work = list(zip(renders, plans, folders, strict=True))
        print(describe_plan(captions_plan, steps_of_work, pack, encode, work_folder(out)))
        return

    def steps(work: Path) -> str | None:
        check_captioner(caption.captioner)
        for one in renders:
            check_generator(one)
        begin(work / "captions", captions_plan)
        for plan, folder in zip(plans, folders, strict=True):
            begin(work / folder, plan)
        print(f"captions of {captions_plan.items} photos, by {caption.captioner} ...", flush=True)
        captioning = caption_photos(source, caption, captions_plan, work / "captions", launch)
        jobs = []
        for one, plan, folder in zip(renders, plans, folders, strict=True):
            share = f" for share {one.share} of the photos" if one.share else ""
            print(f"twins ({', '.join(one.twins.kinds)}){share}, by {one.generator} ...", flush=True)
            if one.generator_endpoint:
                print(disclosure(one), flush=True)
            jobs.append(render_twins(work / "captions", one, plan, work / folder, launch, after=captioning))
        return ", ".join(job for job in jobs if job) or None

    build_dataset(
        out,
        settings,
        steps=steps,
        pack=lambda work: pack_pairs([work / folder for folder in folders], out, pack, encode, settings),
        push_to_hub=upload.push_to_hub,
        keep_work=config.keep_work,
    )


if __name__ == "__main__":
    run_main(main)
