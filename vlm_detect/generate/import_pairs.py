"""Import existing pairs of photos and generated twins as a pair dataset, with all checks of make-pairs. Resumes.

    vlm-detect import-pairs photos/ twins/ --out data/pairs --generator midjourney-6     # matched by name
    vlm-detect import-pairs pairs.csv --out data/pairs

The CSV has the columns real and twin (paths relative to it) and may have kind (caption or vae), generator, caption,
prompt, seed, group and licence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.extras import require
from vlm_detect.generate.import_options import PairSetConfig
from vlm_detect.generate.options import PackConfig, Upload
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.launch import Launch


@dataclass(frozen=True)
class Config:
    sources: list[str] = field(metadata={"positional": True, "metavar": "SRC", "help": "Two folders, or a CSV."})
    out: str = field(metadata={"help": "Folder of the pair dataset."})

    def __post_init__(self) -> None:
        if len(self.sources) > 2:
            raise UserError(f"{' '.join(self.sources)}: give the folders of the photos and of the twins, or one CSV")


def main(argv: list[str]) -> None:
    stages = [Config, Launch, Upload, PairSetConfig, PackConfig, EncodeConfig]
    config, launch, upload, pairs, pack, encode = parse_config(stages, argv, doc=__doc__)
    require("data", "imagehash")
    from vlm_detect.generate.build import build_dataset
    from vlm_detect.generate.pack import pack_pairs
    from vlm_detect.generate.pair_sets import plan_pairs, take_pairs
    from vlm_detect.jobs.shards import begin

    out = Path(config.out)
    plan = plan_pairs(config.sources, pairs)
    settings = {"pairs": asdict(plan), "pack": asdict(pack), "encode": asdict(encode)}

    def steps(work: Path) -> str | None:
        begin(work, plan)
        return take_pairs(config.sources, pairs, plan, work, launch)

    build_dataset(
        out,
        settings,
        steps=steps,
        pack=lambda work: pack_pairs([work], out, pack, encode, settings),
        push_to_hub=upload.push_to_hub,
    )


if __name__ == "__main__":
    run_main(main)
