"""What transformers' `generate` offers works on moondream: streaming, sampling, returned scores, several sequences."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer

from tests.factories import tiny_moondream
from tests.models.test_moondream import QUESTIONS, make_processor, noise_images, until_end
from vlm_detect.models.registry import load_vlm


def test_streamed_text_is_the_generated_text() -> None:
    vlm = load_vlm("nano")  # speaks in words, which a streamer hands over one by one
    tokenizer = vlm.processor.tokenizer
    inputs = vlm.processor(images=noise_images()[:1], prompt_ids=[vlm.caption_ids("normal")])
    ids = vlm.model.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :].tolist()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=vlm.model.generate, kwargs=dict(**inputs, max_new_tokens=24, streamer=streamer))
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(pieces) > 3, "the text came in one piece: it was not streamed"


def test_sampling_is_seeded_and_keeps_to_top_p() -> None:
    model = tiny_moondream()
    inputs = make_processor(model)(images=noise_images(), text=QUESTIONS)

    def sample(seed: int, **options: float) -> list[list[int]]:
        torch.manual_seed(seed)
        output = model.generate(**inputs, max_new_tokens=8, do_sample=True, **options)
        return [until_end(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()
    assert sample(1, temperature=3.0) == sample(1, temperature=3.0)
    assert sample(1, temperature=3.0) != sample(2, temperature=3.0)
    assert sample(1, top_p=1e-6) == [until_end(row) for row in greedy]  # the likeliest token always stays


@pytest.mark.parametrize("n", [2, 3])
def test_several_sequences_of_an_image_equal_separate_batch_rows(n: int) -> None:
    model = tiny_moondream()
    inputs = make_processor(model)(images=noise_images()[:2], text=QUESTIONS[:2])
    length = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=5, num_beams=n, num_return_sequences=n, do_sample=False)
    assert beams.shape[0] == 2 * n
    best = beams[::n, length:].tolist()
    alone = []
    for image, question in zip(noise_images(), QUESTIONS[:2], strict=False):
        one = make_processor(model)(images=[image], text=[question])
        alone.append(
            model.generate(**one, max_new_tokens=5, num_beams=n, do_sample=False)[0, one["input_ids"].shape[1] :]
        )
    assert [until_end(row) for row in best] == [until_end(row.tolist()) for row in alone]
