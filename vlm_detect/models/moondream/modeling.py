"""moondream2 as a transformers model: loads, trains, generates, quantises and saves like any other.

    inputs = processor(images=[photo], text=["Is this image AI-generated?"], return_tensors="pt")
    model(**inputs).logits                                   # (B, T, vocabulary), image positions included
    model.generate(**inputs, max_new_tokens=16)              # the official decoding rules

A sequence is `[BOS][image placeholders][prompt]`. BOS and image attend to each other in both directions, what follows
is causal; without an image the whole sequence is causal. tests/models/test_moondream_golden.py holds it to the official
code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import ModelOutput

from vlm_detect.models.moondream.checkpoint import check_tensors, open_weights, save_official
from vlm_detect.models.moondream.configuration import MoondreamConfig
from vlm_detect.models.moondream.layers import MoondreamPreTrainedModel
from vlm_detect.models.moondream.region import MoondreamRegion
from vlm_detect.models.moondream.text import MoondreamText
from vlm_detect.models.moondream.vision import MoondreamVision
from vlm_detect.models.stored import find_weights, stored_dtype
from vlm_detect.models.untrusted import load_untrusted


@dataclass
class MoondreamModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, D) after the final norm; `region_hidden_state` the same before it."""

    last_hidden_state: torch.Tensor | None = None
    region_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    image_embeds: torch.Tensor | None = None


@dataclass
class MoondreamOutput(ModelOutput):
    """`logits` (B, kept positions, vocabulary); `image_embeds` (B, G*G, D) where images were encoded.

    `last_hidden_state` (B, T, D) is what the vocabulary head reads, `region_hidden_state` what the region head reads,
    both at every position.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    region_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    image_embeds: torch.Tensor | None = None


class MoondreamModel(MoondreamPreTrainedModel):
    """Tower, decoder and region head, under the names of the official checkpoint. No logits: see the class below."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__(config)
        self.vision = MoondreamVision(config.vision_config)
        self.vision.pixel_dtype = config.pixel_dtype
        self.text = MoondreamText(config.text_config)
        self.region = MoondreamRegion(config.region_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text.wte = value

    def embed(
        self,
        input_ids: torch.Tensor,
        image_embeds: torch.Tensor | None,
        coordinates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings (B, T, D), with image embeddings and numbers in their places; arguments as of `forward`."""
        return self.region.put(self._embed(input_ids, image_embeds), coordinates, sizes)

    def _embed(self, input_ids: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings (B, T, D), with each row's image embeddings (B, N, D) in the places of its placeholders."""
        if image_embeds is None:
            return self.text.wte(input_ids)
        places = input_ids == self.config.image_token_id
        # In training on a GPU nothing is counted: every step would wait for it.
        counted = not (self.training and input_ids.is_cuda)
        if counted and (count := int(places.sum())) != image_embeds.shape[0] * image_embeds.shape[1]:
            raise ValueError(
                f"{count} image placeholders for {image_embeds.shape[0]} images of {image_embeds.shape[1]} embeddings "
                "each: build the inputs with MoondreamProcessor"
            )
        # The placeholder is no token of the text: it must not reach the embedding's gradient.
        embeds = self.text.wte(input_ids.masked_fill(places, self.config.bos_token_id))
        return embeds.masked_scatter(places[..., None], image_embeds.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tilings: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoondreamModelOutput:
        """Hidden states of a batch.

        Args:
            input_ids: (B, T), with `image_token_id` in the places of the image embeddings.
            attention_mask: (B, S) with 0 at padding, or a prepared 4D mask (packed samples), used as it is.
            pixel_values: (B, K, 3, C, C), normalised or uint8, and tilings (B, 2), as `MoondreamImageProcessor` gives
                them.
            image_embeds: (B, G*G, D), in place of `pixel_values`: embeddings computed before.
            inputs_embeds: (B, T, D), in place of `input_ids`; then nothing is known of an image and the mask is causal.
            coordinates: (B, T) in [0, 1], encoded in place of the tokens there; NaN where a token is read as a token.
            sizes: (B, T, 2), widths and heights, likewise.
        """
        if pixel_values is not None and image_embeds is None:
            image_embeds = self.vision(pixel_values, tilings)
        prefix = None
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, image_embeds, coordinates, sizes)
            if image_embeds is not None:
                prefix = self.prefix_blocks(input_ids)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if use_cache is None:
            use_cache = self.config.text_config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.text_config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = positions.expand(inputs_embeds.shape[0], -1)
        mask = create_causal_mask(
            config=self.config.text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            block_sequence_ids=prefix,
        )
        hidden_states = self.text(inputs_embeds, mask, position_ids, past_key_values=past_key_values, **kwargs)
        return MoondreamModelOutput(
            last_hidden_state=self.text.post_ln(hidden_states),
            region_hidden_state=hidden_states,
            past_key_values=past_key_values,
            image_embeds=image_embeds,
        )

    def prefix_blocks(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T): 0 where a token belongs to the two-way prefix (BOS and image), -1 elsewhere.

        Placeholders after those of one image are of learned tokens (`models.expert_tokens`): they are causal.
        """
        image = input_ids == self.config.image_token_id
        image = image & (image.cumsum(1) <= self.config.vision_config.num_image_tokens)
        before_image = nn.functional.pad(image[:, 1:], (0, 1))  # BOS stands right before the first placeholder
        return (image | before_image).long() - 1


class SuppressAfterFirst(LogitsProcessor):
    """Forbids a token everywhere but at the first generated position, as the official decoder does with answer_id."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id
        self.started = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.started:
            scores = scores.clone()
            scores[:, self.token_id] = -torch.inf
        self.started = True
        return scores


class MoondreamForConditionalGeneration(MoondreamPreTrainedModel, GenerationMixin):
    """moondream2 with its language-model head. `forward(labels=...)` gives the shifted cross-entropy."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__(config)
        self.model = MoondreamModel(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', from a Hub id or folder in the official layout, which is ours too, or in the legacy one.

        The files' headers are checked against the configuration first: a tensor missing, unknown or misshapen raises
        ValueError with its name, and nothing is loaded halfway. `dtype` defaults to the stored one; a `revision` that
        is the date of a release selects that release's templates.
        """
        hub_names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        hub_options = {name: kwargs.pop(name) for name in hub_names if kwargs.get(name) is not None}
        config = kwargs.pop("config", None)
        if config is None:
            config = load_untrusted(MoondreamConfig, pretrained_model_name_or_path, **hub_options)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        files = find_weights(pretrained_model_name_or_path, **hub_options)
        tensors = open_weights(files, dtype)
        with torch.device("meta"):
            skeleton = cls(config)
        check_tensors(tensors, {name: tensor.shape for name, tensor in skeleton.state_dict().items()})
        dtype = dtype or stored_dtype(tensors)
        model = load_untrusted(super(), None, *args, config=config, state_dict=tensors, dtype=dtype, **kwargs)
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return model

    def get_output_embeddings(self) -> nn.Module:
        return self.model.text.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.text.lm_head = value

    @property
    def region(self) -> MoondreamRegion:
        """The head that reads and writes places."""
        return self.model.region

    def encode_images(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], tilings: torch.Tensor | Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Image embeddings (B, G*G, D), which `forward` takes as `image_embeds`."""
        return self.model.vision(pixel_values, tilings)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tilings: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coordinates: torch.Tensor | None = None,
        sizes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoondreamOutput:
        """Logits, and with `labels` (B, T; -100 is ignored) the mean cross-entropy of each next token.

        `logits_to_keep` makes logits for the last n positions only, or for the positions of a 1D tensor; 0 is all.
        The other arguments are those of `MoondreamModel.forward`.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            tilings=tilings,
            image_embeds=image_embeds,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            coordinates=coordinates,
            sizes=sizes,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor):
            hidden_states = hidden_states[:, logits_to_keep]
        elif logits_to_keep:
            hidden_states = hidden_states[:, -logits_to_keep:]
        logits = self.model.text.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return MoondreamOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=outputs.last_hidden_state,
            region_hidden_state=outputs.region_hidden_state,
            past_key_values=outputs.past_key_values,
            image_embeds=outputs.image_embeds,
        )

    def generate(self, *args: Any, logits_processor: LogitsProcessorList | None = None, **kwargs: Any) -> Any:
        """transformers' generate, with the official rule that the answer marker may only come first."""
        processors = LogitsProcessorList([*(logits_processor or []), SuppressAfterFirst(self.config.answer_token_id)])
        return super().generate(*args, logits_processor=processors, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Image and numbers are read with the prompt; from then on they are in the cache."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "tilings", "image_embeds", "coordinates", "sizes"):
                inputs.pop(name, None)
        return inputs

    @staticmethod
    def create_masks_for_generate(
        attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor, **kwargs: Any
    ) -> Any:
        """Masks for compiled decoding. The prompt's own needs `input_ids`: `forward` makes that one."""
        if inputs_embeds.shape[1] > 1:
            return attention_mask
        config = kwargs.pop("config").get_text_config()
        known = ("past_key_values", "position_ids")
        kwargs = {name: kwargs[name] for name in known if name in kwargs}
        return create_causal_mask(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def save_official(self, save_directory: str | Path) -> None:
        """Write the folder that the official code reads: `config.json` and `model.safetensors` in its own layout."""
        save_official(self, Path(save_directory))
