"""The models: moondream, TinyLLaVA, any image-text-to-text model of transformers, CNNs, and the embedded nano family.

    import vlm_detect.models
    from transformers import AutoModelForImageTextToText      # in either order
    AutoModelForImageTextToText.from_pretrained("a/merged/folder")

Importing this package registers our models in transformers' Auto classes; it imports torch and transformers, which
takes seconds.
"""

from vlm_detect.models import moondream, tinyllava  # noqa: F401  importing one registers it
