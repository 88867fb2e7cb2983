"""The processor of a model for images and text: what transformers' own has of video and audio is left out.

A video processor needs torchvision and an audio one librosa; no image needs either. So a processor class with such
parts is narrowed to a subclass that has an image processor and a tokenizer.
"""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from vlm_detect.models.generic.pixtral import PixtralProcessor

_WANTED = ("image_processor", "tokenizer")
# In place of classes of transformers that need torchvision where no image does.
_OWN: dict[str, type[ProcessorMixin]] = {"PixtralProcessor": PixtralProcessor}


def make_processor(config: Any, image_processor: Any, tokenizer: Any, stored: dict[str, Any]) -> Any:
    """transformers' processor of this model; `stored` are the settings in its folder.

    Raises ValueError where there is none that reads images.
    """
    cls = processor_class(config, tokenizer, stored)
    absent = absent_parts(cls)
    template = stored.get("chat_template") or tokenizer.chat_template
    dropped = {"processor_class", "auto_map", "chat_template", *_WANTED, *absent}
    settings = {name: value for name, value in stored.items() if name not in dropped}
    processor = image_only(cls)(image_processor=image_processor, tokenizer=tokenizer, **absent, **settings)
    processor.chat_template = template  # not every class takes one when it is made
    return processor


def processor_class(config: Any, tokenizer: Any, stored: dict[str, Any]) -> type[ProcessorMixin]:
    """The class that the folder names, else the one of the configuration's type."""
    for name in (stored.get("processor_class"), tokenizer.init_kwargs.get("processor_class")):
        found = processor_class_from_name(name) if name else None
        if found is not None:
            break
    else:
        found = PROCESSOR_MAPPING.get(type(config), None)
    if found is None:
        raise ValueError(f"transformers has no processor for model type {config.model_type!r}")
    return own_class(found)


def own_class(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class that stands here for one of transformers': mostly itself."""
    return _OWN.get(cls.__name__, cls)


class _Absent:
    """A part that is left out; its settings, which some processors copy, are empty."""

    valid_kwargs = None

    def __getattr__(self, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return ""


class _Parts(ProcessorMixin):
    """Between a processor class and `ProcessorMixin`: passes on the parts that are kept."""

    whole: type[ProcessorMixin]  # the processor class that was narrowed

    def __init__(self, *parts: Any, **named: Any) -> None:
        given = dict(zip(self.whole.get_attributes(), parts, strict=False)) | named
        super().__init__(**{name: part for name, part in given.items() if not isinstance(part, _Absent)})

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (self.whole,), self.__dict__


def _blank(whole: type[ProcessorMixin]) -> Any:
    narrowed = image_only(whole)
    return narrowed.__new__(narrowed)


def absent_parts(cls: type[ProcessorMixin]) -> dict[str, Any]:
    """What stands for the parts of a processor class that are left out.

    Raises ValueError for a class that reads no images, or has a second reader of the question.
    """
    parts = cls.get_attributes()
    if missing := set(_WANTED) - set(parts):
        raise ValueError(f"{cls.__name__} has no {' and no '.join(sorted(missing))}, and is not supported")
    absent = [name for name in parts if name not in _WANTED]
    if others := [name for name in absent if "tokenizer" in name]:
        raise ValueError(f"{cls.__name__} reads the question a second time, by a {others[0]}: not supported")
    return {name: _Absent() for name in absent}


def image_only(cls: type[ProcessorMixin]) -> Any:
    """The processor class with an image processor and a tokenizer alone."""
    absent = absent_parts(cls)
    kept = {"get_attributes": classmethod(lambda cls: list(_WANTED)), "whole": cls}
    return type(cls.__name__, (cls, _Parts), {**absent, **kept}) if absent else cls
