"""TinyLLaVA on transformers' LLaVA against outputs of TinyLLaVA_Factory (tests/golden/README.md)."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vlm_detect.models.export import export
from vlm_detect.models.generic import LlavaVLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.tinyllava import TinyLlavaConfig, TinyLlavaForConditionalGeneration, load_tinyllava
from vlm_detect.models.tinyllava.checkpoint import to_llava_name, to_released_name
from vlm_detect.models.tinyllava.configuration import RELEASE
from vlm_detect.models.tinyllava.processing import SYSTEM, chat_template

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = GOLDEN / "tinyllava_tiny"
IMAGES = ["square_small", "wide", "tall_odd"]
FEATURES, LOGITS = 1e-4, 2e-5  # tolerances


def released(folder: Path, mode: str) -> Path:
    """The golden weights as a released checkpoint."""
    folder.mkdir()
    config = json.loads((TINY / "config.json").read_text()) | {"image_aspect_ratio": mode}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY / "weights.safetensors", folder / "model.safetensors")
    shutil.copytree(TINY / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def factory_run(folder: Path, adapter: bool, components: tuple[str, ...]) -> Path:
    """The output folder of a Factory run: its parts as torch files, and with `adapter` the LoRA next to them."""
    folder.mkdir()
    shutil.copy(TINY / "config.json", folder)
    shutil.copytree(TINY / "tokenizer", folder, dirs_exist_ok=True)
    tensors = load_file(TINY / "weights.safetensors")
    prefixes = {
        "language_model": "language_model.",
        "vision_tower": "vision_tower._vision_tower.",
        "connector": "connector.",
    }
    for part in components:
        (folder / part).mkdir()
        state = {name.removeprefix(prefixes[part]): t for name, t in tensors.items() if name.startswith(prefixes[part])}
        if adapter:
            state = {name.replace("_proj.", "_proj.base_layer."): tensor for name, tensor in state.items()}
        torch.save(state, folder / part / "pytorch_model.bin")
    if adapter:
        shutil.copytree(TINY / "adapter", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tinyllava")
    return {mode: released(folder / mode, mode) for mode in ("square", "pad")}


@pytest.fixture(scope="module")
def vlms(checkpoints: dict[str, Path]) -> dict[str, LlavaVLM]:
    return {mode: load_vlm(str(folder)) for mode, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def outputs() -> dict[str, torch.Tensor]:
    return load_file(TINY / "outputs.safetensors")


@pytest.fixture(scope="module")
def meta() -> dict[str, Any]:
    return json.loads((TINY / "meta.json").read_text())


def messages(question: str, *turns: str) -> list[dict[str, Any]]:
    """The image behind the text: the template puts it first."""
    conversation = [{"role": "user", "content": [{"type": "text", "text": question}, {"type": "image"}]}]
    for i, text in enumerate(turns):
        conversation.append({"role": "user" if i % 2 else "assistant", "content": [{"type": "text", "text": text}]})
    return conversation


def expanded(ids: list[int], image_token_id: int, count: int, mark: int = -200) -> list[int]:
    return [one for i in ids for one in ([image_token_id] * count if i == mark else [i])]


def open_image(name: str) -> Image.Image:
    return Image.open(TINY / f"{name}.png").convert("RGB")


@pytest.mark.parametrize("mode", ["square", "pad"])
@pytest.mark.parametrize("name", IMAGES)
def test_image_prompt_logits_and_greedy_ids(name, mode, vlms, outputs, meta) -> None:
    vlm, expected = vlms[mode], meta["images"][name]
    model, processor = vlm.model, vlm.processor
    text = processor.apply_chat_template(messages(expected["question"]), add_generation_prompt=True)
    assert text == expected["eval_prompt"]
    inputs = processor(images=[open_image(name)], text=[text], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids == expanded(expected["eval_input_ids"], vlm.image_token_id, meta["n_image_tokens"])
    assert torch.equal(inputs["pixel_values"][0], outputs[f"{name}.pixel_values.{mode}"])
    with torch.inference_mode():
        hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
        assert (hidden - outputs[f"{name}.vision_features.{mode}"]).abs().max() < FEATURES
        assert (vlm.encode(inputs)[0] - outputs[f"{name}.connector.{mode}"]).abs().max() < FEATURES
        assert (model(**inputs).logits[0] - outputs[f"{name}.logits.{mode}"]).abs().max() < LOGITS
        written = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert written.tolist() == expected[f"greedy_ids.{mode}"]


def test_ids_and_labels_of_training(vlms, meta) -> None:
    vlm = vlms["square"]
    for expected in meta["images"].values():
        prompt = [*vlm.prefix_ids(), *vlm.question_ids(expected["question"])]
        answer = vlm.answer_ids(expected["answer"])
        full = expanded(expected["train_input_ids"], vlm.image_token_id, meta["n_image_tokens"])
        assert [*prompt, *answer] == full
        labels = expanded(expected["train_labels"], -100, meta["n_image_tokens"], mark=-200)
        labels = [-100] * (len(full) - len(labels)) + labels  # the image's one label stands for all of its tokens
        assert [label for label in labels if label != -100] == answer
        assert labels[-len(answer) :] == answer


def test_batch_loss(vlms, outputs, meta) -> None:
    vlm, batch = vlms["square"], meta["batch"]
    ids = torch.tensor([expanded(row, vlm.image_token_id, meta["n_image_tokens"]) for row in batch["input_ids"]])
    mask = torch.tensor(batch["expanded_attention_mask"]).long()
    assert ids.shape == mask.shape
    images = [open_image(name) for name in IMAGES]
    pixels = vlm.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(vlm.levels.normalize(vlm.prepare(images))["pixel_values"], pixels)
    labels = torch.tensor(batch["expanded_labels"])
    with torch.inference_mode():
        output = vlm.model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels)
    assert (output.logits - outputs["batch.logits"])[mask.bool()].abs().max() < LOGITS
    assert float(output.loss) == pytest.approx(batch["loss"], abs=1e-5)


def test_text_without_an_image(vlms, outputs, meta) -> None:
    with torch.inference_mode():
        logits = vlms["square"].model(input_ids=torch.tensor([meta["text_only_ids"]])).logits[0]
    assert (logits - outputs["text_only.logits"]).abs().max() < LOGITS


def test_without_the_bias_of_the_head_nothing_would_agree(vlms, outputs, meta) -> None:
    """What transformers' own class, which has no place for it, would give."""
    model = vlms["square"].model
    assert model.lm_head.bias is not None
    assert model.lm_head.bias.abs().max() > 0.1


@pytest.mark.parametrize("components", [("language_model", "vision_tower", "connector"), ("connector",)])
def test_an_adapter_of_the_factory(components, checkpoints, outputs, meta, tmp_path: Path) -> None:
    """With the whole base next to it, or with the tuned connector alone and the base model's name."""
    folder = factory_run(tmp_path / "run", True, components)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(checkpoints["square"])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    vlm = load_vlm(str(folder))
    name = meta["adapter"]["image"]
    text = meta["images"][name]["eval_prompt"]
    with torch.inference_mode():
        inputs = vlm.processor(images=[open_image(name)], text=[text], return_tensors="pt")
        logits = vlm.model(**inputs).logits[0]
    assert (logits - outputs["adapter.logits"]).abs().max() < FEATURES
    assert (logits - outputs[f"{name}.logits.square"]).abs().max() > 0.01


def test_a_full_run_of_the_factory(vlms, tmp_path: Path) -> None:
    folder = factory_run(tmp_path / "run", False, ("language_model", "vision_tower", "connector"))
    state = load_tinyllava(folder)[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vlms["square"].model.state_dict().items())


def test_the_connector_saved_with_an_adapter_is_the_tuned_one(checkpoints, tmp_path: Path) -> None:
    folder = factory_run(tmp_path / "run", True, ("connector",))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(checkpoints["square"])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tuned = torch.load(folder / "connector" / "pytorch_model.bin", weights_only=True)
    tuned = {name: tensor + 1 for name, tensor in tuned.items()}
    torch.save(tuned, folder / "connector" / "pytorch_model.bin")
    projector = load_tinyllava(folder)[0].model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, tuned["_connector.0.weight"])


def test_saved_weights_are_loaded_unchanged(vlms, checkpoints, tmp_path: Path) -> None:
    """In our layout, and in the released one with the same keys and bytes."""
    vlm = vlms["square"]
    vlm.model.save_official(tmp_path / "official", vlm.processor.tokenizer)
    vlm.model.save_pretrained(tmp_path / "own")
    vlm.processor.save_pretrained(tmp_path / "own")
    original = load_file(checkpoints["square"] / "model.safetensors")
    exported = load_file(tmp_path / "official" / "model.safetensors")
    assert exported.keys() == original.keys()
    assert all(torch.equal(exported[name], original[name]) for name in original)
    official = json.loads((tmp_path / "official" / "config.json").read_text())
    known = json.loads((TINY / "config.json").read_text())
    assert {name: official[name] for name in known if name not in ("text_config", "vision_config")} == {
        name: value for name, value in known.items() if name not in ("text_config", "vision_config")
    }
    for part in ("text_config", "vision_config"):
        assert {name: official[part][name] for name in known[part]} == known[part]
    for folder in ("official", "own"):
        again = load_tinyllava(tmp_path / folder)[0]
        state = again.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in vlm.model.state_dict().items())
        assert again.config.image_token_index == vlm.image_token_id


def test_every_key_of_the_release_has_its_place() -> None:
    """905 tensors of 3,217,417,280 parameters, on the meta device at full size."""
    keys = json.loads((GOLDEN / "tinyllava_keys.json").read_text())
    config = TinyLlavaConfig.from_dict(deepcopy(RELEASE))
    assert config.image_seq_length == 728
    with torch.device("meta"):
        state = TinyLlavaForConditionalGeneration(config).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == keys["n_params"] == 3_217_417_280
    assert len(state) == len(keys["keys"]) == 905
    for name, entry in keys["keys"].items():
        ours = to_llava_name(name)
        assert ours == entry["llava_key_transformers_5_23"]
        assert list(state[ours].shape) == entry["shape"]
        assert to_released_name(ours) == name


def test_prompts_with_the_release_tokenizers_words() -> None:
    """The texts of the official prompts, several turns and an image anywhere in them."""
    import jinja2

    golden = json.loads((GOLDEN / "tinyllava_prompts_codegen.json").read_text())
    template = jinja2.Template(chat_template("<image>", "<|endoftext|>"))
    for item in golden["items"]:
        conversation: list[dict[str, Any]] = []
        for question, answer in item["conversation"]:
            parts = [{"type": "text", "text": question.replace("<image>", "")}]
            parts += [{"type": "image"}] if "<image>" in question else []
            conversation += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        assert template.render(messages=conversation) == item["train_prompt"]
        assert item["train_prompt"].startswith(SYSTEM)
        if "eval_prompt" in item:
            assert template.render(messages=conversation[:-1], add_generation_prompt=True) == item["eval_prompt"]


def test_an_image_tag_in_a_question_is_dropped_as_in_training(vlms) -> None:
    vlm = vlms["square"]
    spelled = ["<image>\nIs it real?", "Is it <image>real?", "Is it real?\n<image> "]
    assert {tuple(vlm.question_ids(question)) for question in spelled} == {tuple(vlm.question_ids("Is it real?"))}
    history = [("<image>\nDescribe it.", "A dog.")]
    assert vlm.dialogue_ids(history, "Is <image>it fake?") == vlm.dialogue_ids(
        [("Describe it.", "A dog.")], "Is it fake?"
    )
    assert vlm.image_token_id not in vlm.dialogue_ids(history, "<image>Is <image>it fake?")


@pytest.mark.parametrize(("name", "warns"), [("official", False), ("my_lora", True)])
def test_a_path_that_breaks_factorys_loader_is_named(name, warns, tmp_path: Path, capsys) -> None:
    run = factory_run(tmp_path / "run", True, ("language_model", "vision_tower", "connector"))
    export(str(run), "official", tmp_path / name)
    assert ("takes a path with 'lora' in it" in capsys.readouterr().err) == warns
    assert "lora" not in str(tmp_path)


def test_later_turns_follow_the_earlier_ones(vlms) -> None:
    vlm = vlms["square"]
    text = vlm.processor.apply_chat_template(
        messages("Describe it.", "A dog.", "Is it fake?"), add_generation_prompt=True
    )
    inputs = vlm.processor(images=[open_image("wide")], text=[text], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [
        *vlm.prefix_ids(),
        *vlm.dialogue_ids([("Describe it.", "A dog.")], "Is it fake?"),
    ]


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "pickle"])
def test_a_damaged_checkpoint_is_refused_naming_the_tensor(damage, tmp_path: Path) -> None:
    folder = released(tmp_path / "model", "square")
    name, path = "connector._connector.0.weight", folder / "model.safetensors"
    tensors = load_file(path)
    wanted = "linear_1.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["connector._connector.9.weight"] = tensors[name].clone()
        wanted = "_connector.9"
    elif damage == "misshapen":
        tensors[name] = tensors[name][:-1].contiguous()
    if damage == "pickle":
        path.unlink()
        torch.save({"x": Path("/")}, folder / "pytorch_model.bin")
        wanted = "cannot be read safely"
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=wanted):
        load_tinyllava(folder)
