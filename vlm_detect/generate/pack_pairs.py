"""Step 3 of 3: write photos and twins with identical encoding into a pair dataset for `datasets.load_dataset`.

vlm-detect pack --renders work/renders --out data/pairs --size 1024
vlm-detect pack --renders work/renders --out data/pairs --size 1024 --push_to_hub owner/name
vlm-detect pack --renders work/sd35 work/flux work/sdxl --out data/pairs --hold_out generator=NAME
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.extras import require
from vlm_detect.generate.options import PackConfig, Upload
from vlm_detect.images.encode_config import EncodeConfig


@dataclass(frozen=True)
class Config:
    renders: list[str] = field(metadata={"help": "Output of vlm-detect render; several for several generators."})
    out: str = field(default="data/pairs", metadata={"help": "Folder of the pair dataset."})

    def __post_init__(self) -> None:
        if repeated := sorted({folder for folder in self.renders if self.renders.count(folder) > 1}):
            raise UserError(f"--renders {' '.join(repeated)}: given twice")


def main(argv: list[str]) -> None:
    config, upload, pack, encode = parse_config([Config, Upload, PackConfig, EncodeConfig], argv, doc=__doc__)
    require("data", "imagehash")
    from vlm_detect.generate.build import build_dataset, settings_of_renders
    from vlm_detect.generate.pack import pack_pairs
    from vlm_detect.jobs.shards import check_finished

    renders, out = [Path(folder) for folder in config.renders], Path(config.out)
    plans = [check_finished(folder, "render", "pairs") for folder in renders]
    settings = settings_of_renders(plans) | {"pack": asdict(pack), "encode": asdict(encode)}
    build_dataset(
        out,
        settings,
        steps=lambda work: None,  # they are done
        pack=lambda work: pack_pairs(renders, out, pack, encode, settings),
        push_to_hub=upload.push_to_hub,
        keep_work=True,  # of another command
    )


if __name__ == "__main__":
    run_main(main)
