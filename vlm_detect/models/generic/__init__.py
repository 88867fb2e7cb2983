"""Any `AutoModelForImageTextToText` of transformers whose processor has a chat template."""

from .family import ChatVLM, LlavaVLM
from .loading import load_generic

__all__ = ["ChatVLM", "LlavaVLM", "load_generic"]
