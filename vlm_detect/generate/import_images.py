"""Import labelled images as an image dataset. The same command resumes.

    vlm-detect import-images --from cifake archive/ --out data/cifake   # {train,test}/{REAL,FAKE}, or parquet
    vlm-detect import-images --from cifake kaggle --out data/cifake     # downloaded by kagglehub
    vlm-detect import-images --from genimage GenImage/ --out data/genimage --hold_out generator=ADM
    vlm-detect import-images --from folders set/ --out data/set         # 0_real, 1_fake, REAL, FAKE, EDITED
    vlm-detect import-images --from folders labels.csv --out data/set   # or a folder with such a table
    vlm-detect import-images --from hub owner/name:config:split --out data/name --labels 0=real 1=generated

    vlm-detect import-images --from sid hub --out data/sid --limit 20000  # a published set: docs/data.md lists them
    vlm-detect import-images --from xaigd hub --photos photos/ --out data/xaigd   # one without real images

GenImage is <generator>/{train,val}/{ai,nature}. In `folders` the innermost label folder gives the label; of the folders
above it that are neither a label nor a split, the first is the generator and the next the class. A published test set
stays the test split. Pixels are unchanged, metadata are removed; `vlm-detect audit OUT` finds leaks of the label.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.extras import require
from vlm_detect.generate.import_options import ImportConfig
from vlm_detect.generate.options import Upload
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    src: str = field(metadata={"positional": True, "help": "A folder, a Hub dataset id, kaggle[:HANDLE], or hub."})
    out: str = field(metadata={"help": "Folder of the image dataset."})


def main(argv: list[str]) -> None:
    stages = [Config, Launch, Upload, ImportConfig]
    config, launch, upload, images = parse_config(stages, argv, doc=__doc__)
    require("data", "imagehash")
    from vlm_detect.data.published import published
    from vlm_detect.generate.build import build_dataset
    from vlm_detect.generate.import_step import import_images, pack_images, plan_import
    from vlm_detect.jobs.shards import begin

    if (preset := published(images.layout)) is not None:
        preset.check_upload(upload.push_to_hub)
        print(preset.described())
    out = Path(config.out)
    plan = plan_import(config.src, images)
    settings = asdict(plan)

    def steps(work: Path) -> str | None:
        begin(work, plan)
        return import_images(config.src, images, plan, work, launch)

    build_dataset(
        out,
        settings,
        steps=steps,
        pack=lambda work: pack_images(work, out, images, settings),
        push_to_hub=upload.push_to_hub,
    )


if __name__ == "__main__":
    run_main(main)
