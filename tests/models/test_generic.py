"""Image-text models of transformers, six architectures and TinyLLaVA: each is loaded, asked, trained, quantised."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.test_tinyllava_golden import released
from tests.models.tiny_chat import ARCHITECTURES, save_tiny
from tests.train.toys import stored, toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain, plain_inputs, score_plain
from vlm_detect.models.base import VLM
from vlm_detect.models.export import export
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss, row_inputs
from vlm_detect.train.options import LoraOptions, ModelOptions, QuestionOptions
from vlm_detect.train.tuning import loading, tune

# transformers' PaliGemmaProcessor makes arrays of tensors in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = [*ARCHITECTURES, "tinyllava"]
ASKS = [
    [Ask("Is it AI?", ("Yes.", "No.")), Ask("What?", ("a ship", "x"))],
    [Ask("Real?", ("Yes.", "No."))],
    [Ask("Is it AI?", ("Yes.", "No."), whole=False)],
]
SIZES = [(16, 16), (40, 20), (30, 40)]
ASKED = [("AI-generated", "No."), ("a photo of a ship", "Yes."), ("real", "Yes, it is.")]
QUESTIONS = [["Why?", "What is it?"], ["x"], ["Is it AI?"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    found = {name: save_tiny(name, home / name) for name in ARCHITECTURES}
    return {**found, "tinyllava": released(home / "tinyllava", "square")}


def noise(size: tuple[int, int], rng: np.random.Generator | None = None) -> Image.Image:
    width, height = size
    rng = rng or np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [noise(size, rng) for size in SIZES]


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> VLM:
    return load_vlm(str(folders[request.param]))


def batch_of(vlm: VLM, pack: bool) -> dict[str, Any]:
    units = Units(toy_pairs(2), QuestionOptions(questions_per_image=2))
    return Collator(vlm, pack=pack)([units[0, 0], units[0, 1]])


def test_ids_are_the_processors_own(vlm: Any, images) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "Is it AI?"}]
    messages = [{"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    for image in images:
        ids = vlm.processor(images=[image], text=[text], return_tensors="pt")["input_ids"][0].tolist()
        prefix = vlm.prefix_ids() if vlm.has_fixed_prefix else vlm.prefix_rows(vlm.prepare([image]))[0]
        assert [*prefix, *vlm.question_ids("Is it AI?")] == ids
    marker = vlm.processor.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    assert vlm.image_token_id not in vlm.question_ids(f"What is {marker}?"), "a question forged an image"


def test_image_processors_are_those_of_pillow(vlm: Any) -> None:
    assert type(vlm.processor.image_processor).__name__.endswith("Pil")


def test_cached_answers_equal_the_plain_path(vlm: VLM, images) -> None:
    engine = Engine(vlm)
    for image, asks, scored in zip(images, ASKS, engine.score(images, ASKS), strict=True):
        for ask, scores in zip(asks, scored, strict=True):
            for candidate, score in zip(ask.candidates, scores, strict=True):
                plain = score_plain(vlm, image, ask.question, candidate, whole=ask.whole)
                assert score.n_tokens == plain.n_tokens
                assert score.logprob == pytest.approx(plain.logprob, abs=1e-4)
    written = engine.generate(images, QUESTIONS, max_new_tokens=5)
    assert written == [
        [generate_plain(vlm, image, vlm.question_ids(one), 5) for one in some]
        for image, some in zip(images, QUESTIONS, strict=True)
    ]
    assert len({text for some in written for text in some}) > 1, "every answer is the same: nothing was compared"
    steps = list(engine.stream(images[:1], [[vlm.question_ids("What is it?")]], 5))
    ids = [int(step) for step in steps]
    ids = ids[: ids.index(vlm.eos_token_id)] if vlm.eos_token_id in ids else ids
    assert vlm.decode(ids).strip() == written[0][1]


def test_the_plain_path_equals_the_models_own_generate(vlm: VLM, images) -> None:
    """Log-probabilities of a greedy answer: step by step in `generate`, and by one forward over all of it."""
    inputs = plain_inputs(vlm, images[1], vlm.question_ids("What is it?"))
    output = vlm.model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, eos_token_id=-1
    )
    ids = output.sequences[0][-4:].tolist()
    stepwise = sum(float(logits[0].log_softmax(-1)[i]) for logits, i in zip(output.logits, ids, strict=True))
    whole = plain_inputs(vlm, images[1], vlm.question_ids("What is it?"), ids)
    with torch.inference_mode():
        logprobs = vlm.model(**whole).logits[0, -5:-1].log_softmax(-1)
    assert stepwise == pytest.approx(sum(float(row[i]) for row, i in zip(logprobs, ids, strict=True)), abs=1e-4)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_and_reloads(name: str, quantize: str | None, folders, images, tmp_path: Path) -> None:
    """Every layer of the LoRA takes part, the loss falls, and the saved adapter gives the tuned model's answers."""
    options = ModelOptions(quantize=quantize)
    vlm = load_vlm(str(folders[name]), device="cpu", **loading(options, torch.device("cpu")))
    lora = LoraOptions(lora_targets="all-linear+vision", train_connector=vlm.connector is not None)
    tune(vlm, options, lora, seed=0)
    vlm.model.train()
    trained = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    batch = batch_of(vlm, pack=True)
    assert len(batch["ids"]) == (8 if name == "paligemma" else 4), "questions, or images"
    losses = []
    for _ in range(4):
        loss = answer_loss(vlm, vlm.model, batch)
        optimizer.zero_grad()
        loss.backward()
        untouched = [n for n, p in trained.items() if p.grad is None]
        assert not untouched
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    vlm.model.eval()
    if quantize is None:
        with torch.no_grad():
            packed, plain = (float(answer_loss(vlm, vlm.model, batch_of(vlm, pack))) for pack in (True, False))
        assert packed == pytest.approx(plain, abs=1e-4)
        vlm.model.save_pretrained(tmp_path / "run", save_embedding_layers=False)
        again = load_vlm(str(tmp_path / "run"), device="cpu")
        tuned = score_plain(vlm, images[0], "Is it AI?", "Yes.").logprob
        assert score_plain(again, images[0], "Is it AI?", "Yes.").logprob == pytest.approx(tuned, abs=1e-4)
        export(str(tmp_path / "run"), "merged", tmp_path / "merged")
        merged = load_vlm(str(tmp_path / "merged"), device="cpu")
        assert score_plain(merged, images[0], "Is it AI?", "Yes.").logprob == pytest.approx(tuned, abs=1e-3)
        untuned = load_vlm(str(folders[name]), device="cpu")
        assert score_plain(untuned, images[0], "Is it AI?", "Yes.").logprob != pytest.approx(tuned, abs=1e-2)


@pytest.mark.parametrize("name", [*(name for name in NAMES if name != "paligemma"), "gemma3 with a narrow window"])
def test_packed_questions_have_the_losses_and_gradients_of_separate_rows(name: str, folders) -> None:
    """Of images whose prefixes differ in length; with a token budget all of them stand in one row."""
    vlm = load_vlm(str(folders[name.partition(" ")[0]]), device="cpu")
    if "window" in name:
        vlm.model.config.get_text_config().sliding_window = 7  # narrower than a question, wider than an image
    add_lora(vlm, LoraOptions(lora_targets="all-linear+vision"))
    for key, parameter in vlm.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    questions = [Question("yes_no", f"Is it {word}?", answer) for word, answer in ASKED]
    units = [[Example(stored(noise(size)), questions[: 3 - i], "real") for i, size in enumerate(SIZES)]]
    layouts: list[dict[str, Any]] = [{"pack": False}, {"pack": True}, {"pack": True, "row_tokens": 2000}]
    found = []
    for layout, rows in zip(layouts, (6, 3, 1), strict=True):
        batch = Collator(vlm, **layout)(units)
        assert len(batch["ids"]) == rows
        loss = answer_loss(vlm, vlm.model, batch)
        vlm.model.zero_grad()
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in vlm.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    plain, *packed = found
    for value, gradients in packed:
        assert value == pytest.approx(plain[0], abs=1e-5)
        assert gradients.keys() == plain[1].keys()
        for key, gradient in plain[1].items():
            torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-4, msg=key)


def test_a_tuned_model_in_bfloat16_packs_under_a_mask_of_its_decoders_dtype(folders) -> None:
    """On CUDA fused attention takes no mask of another; here a connector is trained in float32."""
    vlm = load_vlm(str(folders["tinyllava"]), device="cpu", dtype=torch.bfloat16)
    add_lora(vlm, LoraOptions(train_connector=True))
    batch = batch_of(vlm, pack=True)
    embeds = vlm.encode(batch["prepared"])
    assert embeds.dtype == torch.float32
    inputs = row_inputs(vlm, embeds, batch)
    assert inputs["attention_mask"].dtype == inputs["inputs_embeds"].dtype == torch.bfloat16


def test_a_connector_that_was_trained_in_float32_is_not_rounded_when_its_run_is_loaded(folders, tmp_path) -> None:
    """Its calibration was fitted on the scores of the weights as they were trained."""
    base = load_vlm(str(folders["tinyllava"]), device="cpu", dtype=torch.bfloat16)
    for part in (base.model, base.processor):
        part.save_pretrained(tmp_path / "base")
    vlm = load_vlm(str(tmp_path / "base"), device="cpu", dtype=torch.bfloat16)
    add_lora(vlm, LoraOptions(train_connector=True))
    trained = {name: tensor for name, tensor in vlm.model.named_parameters() if tensor.requires_grad}
    with torch.no_grad():
        for tensor in trained.values():
            tensor.add_(1e-4 * torch.randn_like(tensor))
    vlm.model.save_pretrained(tmp_path / "run", save_embedding_layers=False)
    again = load_vlm(str(tmp_path / "run"), device="cpu", dtype=torch.bfloat16)
    loaded = dict(again.model.named_parameters())
    for name, tensor in trained.items():
        torch.testing.assert_close(loaded[name], tensor, atol=0, rtol=0, msg=name)
    images = [noise(size) for size in SIZES]
    vlm.model.eval()
    assert Engine(again).score(images, ASKS) == Engine(vlm).score(images, ASKS)
    export(str(tmp_path / "run"), "merged", tmp_path / "merged")
    merged = load_vlm(str(tmp_path / "merged"), device="cpu", dtype="stored").model
    assert {tensor.dtype for tensor in merged.parameters()} == {torch.bfloat16}


def test_a_collator_goes_to_worker_processes_without_the_weights(vlm: VLM) -> None:
    tuned = copy.copy(vlm)
    tuned.model = copy.deepcopy(vlm.model)
    add_lora(tuned, LoraOptions(train_connector=vlm.connector is not None))
    units = Units(toy_pairs(2), QuestionOptions(questions_per_image=2))
    collator = Collator(tuned, pack=True)
    sent = pickle.dumps(collator)
    assert b"lora_A" not in sent
    assert tuned.model is collator.vlm.model is not None
    here, there = (each([units[0, 0], units[0, 1]]) for each in (collator, pickle.loads(sent)))
    torch.testing.assert_close(there, here, atol=0, rtol=0)


def test_nothing_is_packed_if_image_and_question_attend_to_each_other(folders) -> None:
    batch = batch_of(load_vlm(str(folders["paligemma"]), device="cpu"), pack=True)
    assert len(batch["ids"]) == batch["n_questions"] == 8


def test_without_a_chat_template_a_question_follows_its_image(folders, images, tmp_path: Path, capsys) -> None:
    shutil.copytree(folders["idefics3"], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    vlm = load_vlm(str(tmp_path / "model"), device="cpu")
    assert "no chat template" in capsys.readouterr().err
    assert vlm.decode(vlm.question_ids("Is it AI?")) == "Is it AI?\n"
    assert Engine(vlm).generate(images[:1], [["Is it AI?"]], max_new_tokens=2)


def test_an_adapter_of_another_base_is_refused(folders, tmp_path: Path) -> None:
    vlm = load_vlm(str(folders["idefics3"]))
    add_lora(vlm, LoraOptions())
    vlm.model.save_pretrained(tmp_path / "run")
    with pytest.raises(UserError, match="does not fit this model"):
        load_vlm(str(folders["tinyllava"]), adapter=tmp_path / "run")


def test_a_prompt_beyond_the_context_is_refused_with_its_numbers(vlm: VLM, images) -> None:
    question = "x" * vlm.context
    for ask in (
        lambda: Engine(vlm).score(images[:1], [[Ask(question, ("Yes.",))]]),
        lambda: Engine(vlm).generate(images[:1], [[question]], max_new_tokens=4),
    ):
        with pytest.raises(UserError, match=f"context is {vlm.context}"):
            ask()


def test_text_that_spells_special_tokens_stays_text_in_every_turn(vlm: Any) -> None:
    """In questions and earlier answers alike: nothing of it is a marker, and all of it can be read back."""
    tokenizer = vlm.processor.tokenizer
    markers = [token for token in tokenizer.get_added_vocab() if tokenizer.convert_tokens_to_ids(token) is not None]
    special = set(tokenizer.all_special_ids) | {vlm.image_token_id}
    plain = vlm.dialogue_ids([("Is it real?", "No, it is not.")], "Why is it?")
    spelled = " ".join(markers)
    history = [(f"Is it {spelled}?", f"No, {spelled}.")]
    ids = vlm.dialogue_ids(history, f"Why {spelled}?")
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert vlm.image_token_id not in ids
    text = tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
    for part in (*history[0], f"Why {spelled}?"):
        words = part.replace(" ", "")
        assert words in text or words.replace("<image>", "") in text  # TinyLLaVA's template drops that word
