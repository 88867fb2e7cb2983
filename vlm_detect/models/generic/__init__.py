"""Any `AutoModelForImageTextToText` of transformers whose processor has a chat template."""

from .family import ChatVLM
from .llava import LlavaVLM
from .loading import load_generic

__all__ = ["ChatVLM", "LlavaVLM", "load_generic"]
