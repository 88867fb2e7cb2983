"""Models of transformers' `AutoModelForImageTextToText` whose answer continues the prompt."""

from vlm_detect.models.generic.family import ChatVLM
from vlm_detect.models.generic.llava import LlavaVLM
from vlm_detect.models.generic.loading import load_generic

__all__ = ["ChatVLM", "LlavaVLM", "load_generic"]
