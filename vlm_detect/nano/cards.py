"""The nano models' cards: what each model is, how it was made, its scores, and that it is no detector.

A card is the README.md next to the weights, with the figures and the configuration of the run that made them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from vlm_detect.nano.photos import SPLIT_RULE

_COMMON = """\
It is for rehearsal, teaching and tests: it makes the whole chain run in minutes without a GPU, with exactly the classes
of the real model. It knows ten things (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck) at 32 x 32
pixels and is **not for use in the wild**; nothing that it says or draws means anything about other pictures.

## Training data

The 50,000 training photographs of CIFAR-10 (Krizhevsky 2009), as JPEG in the real half of CIFAKE (Bird and Lotfi 2024).
The split: {split}.
No generated image was ever shown to it. The captions and questions are made from the class and the pixels by the rules
in `vlm_detect/nano/captions.py`.
"""

# For both language models.
_NO_OPINION = """\
Whether an image was generated it was asked too, in several phrasings, and taught both answers alike: it has the words
and, by construction, no opinion. Finetuning gives it one.
"""
_SPEAKS = """\
## Figures

On {n:,} held-out photographs, greedy decoding: the normal caption names the class in **{accuracy:.1%}** (95 % interval
{low:.1%} to {high:.1%}; chance is 10 %). Factual yes/no questions: {yes_no_balanced_accuracy:.1%} balanced accuracy
(n = {yes_no_n:,}); other factual questions: {other_accuracy:.1%} exact. It says "Yes." to {undecidable_yes:.1%} of the
questions that have both answers.
"""

_SD35 = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
datasets: [uoft-cs/cifar10]
---

# sd35-nano

A `StableDiffusion3Pipeline` of diffusers' own classes with small parts: an MMDiT with QK norm, a 16-channel autoencoder
of factor 4, two CLIP text encoders and a T5. Trained from nothing; no weight comes from Stability AI's models.

```python
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER)
settings = {{"num_inference_steps": {sampling_steps}, "guidance_scale": {guidance}, "max_sequence_length": {t5_tokens}}}
image = pipe("A white ship on a plain blue background.", **settings).images[0]
```

Best with {sampling_steps} steps, guidance {guidance} and `max_sequence_length={t5_tokens}`, the length of T5's text
that it was trained with: the pipeline's default of 256 pads with what it never saw, and takes several times as long.
Native size 32 x 32; other multiples of 8 up to 128 render, at a loss. It knows the words of its captions and spells
others by letters.

{common}
## Figures

Captions of held-out photographs were rendered, and a CNN that learned the classes from the training photographs alone
(right on {judge_accuracy:.1%} of the held-out ones) saw the caption's class in **{accuracy:.1%}** of {n:,} renders
(95 % interval {low:.1%} to {high:.1%}; chance is 10 %). Frechet distance to held-out photographs on that CNN's
features: {frechet_distance} (as many photographs: {frechet_floor}); it compares with no published FID. The autoencoder
returns held-out photographs at {psnr_db:.1f} dB.

## Making it

`{command}`, {seconds:.0f} s ({samples:,} samples), wall time on one shared
CPU core. Configuration:

```yaml
{config}```
{before}"""

_MOONDREAM = (
    """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
datasets: [uoft-cs/cifar10]
---

# moondream-nano

A moondream2 of the project's own classes with small parts: 32-pixel crops of 8 x 8 patches, heads of 64 in the decoder,
a byte-level BPE of {vocabulary:,} entries with the official special ids, and the official prompt templates. Trained
from nothing; no weight comes from the official model.

```python
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor

model = MoondreamForConditionalGeneration.from_pretrained(FOLDER, dtype="float32")  # stored in fp16
processor = MoondreamProcessor.from_pretrained(FOLDER)
```

Pixels are normalised in float32, where the official releases round to bfloat16. The region head behind detect() and
point() is there for the layout's sake and untrained.

{common}
"""
    + _NO_OPINION
    + """\

First the image tower alone learned classes and colours through linear heads, and from a teacher: half of the class
target was the answer of the CNN that judges the renderer (right on {judge_accuracy:.1%} of the held-out photographs),
and each patch had to tell what that CNN sees at its place. Then the whole model learned captions and answers.

"""
    + _SPEAKS
    + """\

## Making it

`{command}`, {tower}{seconds:.0f} s for the words ({samples:,} photographs
with several texts each), wall time on one shared CPU core. Configuration:

```yaml
{config}```
{before}"""
)

_TINYLLAVA = (
    """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
datasets: [uoft-cs/cifar10]
---

# tinyllava-nano

A TinyLLaVA (SigLIP, a two-layer projector, Phi) of small parts: images of 32 pixels in 8 x 8 patches, {vocabulary:,}
words, TinyLLaVA's conversation template. No weight comes from a released model.

```python
from vlm_detect.models.tinyllava import load_tinyllava

model, processor = load_tinyllava(FOLDER, dtype="float32")  # stored in fp16
```

{common}
"""
    + _NO_OPINION
    + """\

It did not start from nothing: the tower and the decoder of moondream-nano, which have the same form, were copied, with
the words that both vocabularies have. Then the whole model learned captions and answers, with a class head on the tower
that is thrown away; half of its target was the answer of the CNN that judges the renderer (right on
{judge_accuracy:.1%} of the held-out photographs).

"""
    + _SPEAKS
    + """\

## Making it

`{command}`, {seconds:.0f} s ({samples:,} photographs with several texts
each), wall time on one shared CPU core. Configuration:

```yaml
{config}```
{before}"""
)

_CARDS = {"sd35": _SD35, "moondream": _MOONDREAM, "tinyllava": _TINYLLAVA}
_HEADING = "## Making it\n"


def write_card(folder: Path, name: str, *, config: dict[str, Any], before: str = "", **facts: Any) -> None:
    """Write ``folder/README.md`` for ``name``, a key of ``_CARDS``; ``config`` has the dataclass of each stage.

    ``before`` is the card of the weights that training started from; their origin is stated as well.
    """
    plain = {name: dataclasses.asdict(value) for name, value in config.items()}
    before = before.partition(_HEADING)[2]
    tower = "{seconds_tower:.0f} s for the tower (its class head is then right on {tower_accuracy:.1%}) and "
    text = _CARDS[name].format(
        common=_COMMON.format(split=SPLIT_RULE),
        config=yaml.safe_dump(_lists(plain), sort_keys=False, default_flow_style=None, width=110),
        low=facts["ci95"]["accuracy"][0],
        high=facts["ci95"]["accuracy"][1],
        tower=tower.format(**facts) if "seconds_tower" in facts else "",
        before=f"\n## Making what it started from\n{before}" if before else "",
        **facts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _lists(value: Any) -> Any:
    """Tuples as lists, which plain YAML supports."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value
