"""The flags of a dataset's encoder, which `encode.py` implements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vlm_detect.config import check_between


@dataclass(frozen=True)
class EncodeConfig:
    """The encoder of a dataset."""

    encode: Literal["jpeg", "png"] = field(default="jpeg", metadata={"help": "Encoder of both members."})
    quality: int = field(default=96, metadata={"help": "JPEG quality, 1 to 100."})
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = field(
        default="4:4:4", metadata={"help": "Chroma subsampling; 4:4:4 loses the least."}
    )

    def __post_init__(self) -> None:
        check_between(self, 1, 100, "quality")

    def describe(self) -> dict[str, object]:
        """The encoder's settings for `receipt.encode`."""
        if self.encode == "png":
            return {"format": "png"}
        return {"format": "jpeg", "quality": self.quality, "subsampling": self.subsampling}
