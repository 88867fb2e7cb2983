"""MoondreamProcessor as transformers' and TRL's tools use a processor: by class, files and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError
from transformers import AutoProcessor, ProcessorMixin

from tests.factories import tiny_moondream
from tests.models.test_moondream import make_processor, noise_images
from vlm_detect.models.moondream import MoondreamProcessor
from vlm_detect.models.registry import load_vlm

QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it real? Why?"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "No. It has six fingers."}]}


@pytest.fixture(params=["tiny", "nano"])
def processor(request: pytest.FixtureRequest) -> MoondreamProcessor:
    return make_processor(tiny_moondream()) if request.param == "tiny" else load_vlm("nano").processor


def test_a_rendered_conversation_has_the_ids_of_training_and_inference(processor: MoondreamProcessor) -> None:
    assert isinstance(processor, ProcessorMixin)
    prompt = processor.apply_chat_template([QUESTION], add_generation_prompt=True)
    whole = processor.apply_chat_template([QUESTION, ANSWER])
    assert whole.startswith(prompt)
    image = noise_images()[1]
    expected = processor(images=[image], text=["Is it real? Why?"])
    for images in ([image], [[image]], image):
        inputs = processor(images=images, text=[prompt], add_special_tokens=False)
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    answer = processor(text=[whole.removeprefix(prompt)], add_special_tokens=False)
    assert answer["input_ids"].tolist() == [processor.answer_ids("No. It has six fingers.")]
    alone = processor.apply_chat_template([{"role": "user", "content": "Hello?"}])
    assert torch.equal(
        processor(text=[alone], add_special_tokens=False)["input_ids"], processor(text="Hello?")["input_ids"]
    )


def test_a_conversation_with_its_image_becomes_inputs_at_once(processor: MoondreamProcessor) -> None:
    image = noise_images()[2]
    turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Real?"}]}
    inputs = processor.apply_chat_template([turn], tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor(images=[image], text=["Real?"])
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_a_second_question_is_refused(processor: MoondreamProcessor) -> None:
    for messages in ([QUESTION, ANSWER, QUESTION], [{"role": "system", "content": "Be brief."}, QUESTION]):
        with pytest.raises(TemplateError, match="answers single questions"):
            processor.apply_chat_template(messages)


def test_prompts_of_the_first_release_are_separate_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their template is text ("\\n\\nQuestion: ..."); a tokenizer encodes it to other ids as a whole."""
    codegen = {"query": {"prefix": [27, 27, 98], "suffix": [27, 27, 82]}}
    changes = {"question_prefix": " ", "query_suffix_repeats": 1, "image_token_id": 279}  # no token has that id
    model = tiny_moondream(templates=codegen, text_config={"vocab_size": 280}, **changes)
    processor = make_processor(model)
    encode = processor.encode
    newlines = processor.tokenizer.decode([27, 27])
    monkeypatch.setattr(processor, "encode", lambda text: [28 if newlines in text else 29, *encode(text)])
    text = processor.apply_chat_template([QUESTION])
    inputs = processor(images=noise_images()[:1], text=[text], add_special_tokens=False)
    assert torch.equal(inputs["input_ids"], processor(images=noise_images()[:1], text="Is it real? Why?")["input_ids"])
    assert "<image>" in text


def test_auto_processor_loads_every_saved_form(tmp_path: Path) -> None:
    model = tiny_moondream()
    processor = make_processor(model)
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    model.save_official(tmp_path / "official")
    expected = processor(images=noise_images()[:1], prompt_ids=[[1, 20, 2]])
    for form in ("own", "official"):
        again = AutoProcessor.from_pretrained(tmp_path / form)
        assert isinstance(again, MoondreamProcessor)
        inputs = again(images=noise_images()[:1], prompt_ids=[[1, 20, 2]])
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert "release=2025-06-21" in repr(again)
    assert json.loads(again.to_json_string())["processor_class"] == "MoondreamProcessor"
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["a"], "prompt_ids": [[1]]}, "exactly one of text and prompt_ids"),
        ({"text": ["a"], "images": noise_images()[:2]}, "2 images for 1 prompts"),
        ({"text": ["a"], "images": [noise_images()[:2]]}, "one image per prompt"),
        ({"text": ["a"], "videos": [1]}, "no videos"),
        ({"text": ["plain"], "images": noise_images()[:1], "add_special_tokens": False}, "1 images for 1 prompts"),
    ],
)
def test_inconsistent_inputs_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor(tiny_moondream())(**arguments)


def test_trls_own_collator_gives_the_training_ids(processor: MoondreamProcessor) -> None:
    dpo = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs the extra preference")
    collate = dpo.DataCollatorForVisionPreference(processor)
    examples = [
        {
            "images": [image],
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": "No. Six fingers."}],
            "rejected": [{"role": "assistant", "content": "Yes."}],
        }
        for image, question in zip(noise_images(), ["Real?", "Is it a photo?"], strict=False)
    ]
    batch = collate(examples)
    rows = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    prompts = processor(images=noise_images()[:2], text=["Real?", "Is it a photo?"])
    for i, answer in enumerate(["No. Six fingers."] * 2 + ["Yes."] * 2):
        prompt = prompts["input_ids"][i % 2][prompts["attention_mask"][i % 2] == 1].tolist()
        assert rows[i] == prompt + processor.answer_ids(answer)
        learned = batch["input_ids"][i][batch["completion_mask"][i] == 1].tolist()
        assert learned == processor.answer_ids(answer)
    assert torch.equal(batch["pixel_values"], torch.cat([prompts["pixel_values"]] * 2))
