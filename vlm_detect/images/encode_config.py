"""The flags of the one encoder of a dataset; `encode.py` has what they do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vlm_detect.config import check_between


@dataclass(frozen=True)
class EncodeConfig:
    """The one encoder of a dataset."""

    encode: Literal["jpeg", "png"] = field(default="jpeg", metadata={"help": "Last encoder of both members."})
    quality: int = field(default=96, metadata={"help": "Its JPEG quality, 1 to 100."})
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = field(
        default="4:4:4", metadata={"help": "Its chroma subsampling; 4:4:4 loses least."}
    )

    def __post_init__(self) -> None:
        check_between(self, 1, 100, "quality")

    def describe(self) -> dict[str, object]:
        """What `receipt.encode` tells of the encoder."""
        if self.encode == "png":
            return {"format": "png"}
        return {"format": "jpeg", "quality": self.quality, "subsampling": self.subsampling}
