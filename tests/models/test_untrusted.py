"""No code of a model folder runs, wherever the folder names it and whatever stands on stdin."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from tests.models.tiny_chat import save_tiny
from vlm_detect.apps.estimates import estimate_config
from vlm_detect.config import REPOSITORY
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.backbones import backbone_config
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection, new_model
from vlm_detect.models.nano import nano_path
from vlm_detect.models.registry import ResolvedModel, load_vlm
from vlm_detect.models.tinyllava import TinyLlavaForConditionalGeneration
from vlm_detect.models.untrusted import build_untrusted, load_untrusted

ROOMS = ("vlm_detect", "recipes", "eval", "data_gen")
HELPER = REPOSITORY / "vlm_detect" / "models" / "untrusted.py"
# A configuration that transformers knows but that has no AutoModel: when a part of this type is built, it prompts.
NO_MODEL = next(name for name, kind in CONFIG_MAPPING.items() if kind not in MODEL_MAPPING)
EVIL = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForImageTextToText": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoImageProcessor": "evil.Evil",
    "AutoProcessor": "evil.Evil",
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether any code ran, where everybody who asks is answered with yes."""
    monkeypatch.setenv("MARK", str(tmp_path / "ran"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    return lambda: (tmp_path / "ran").exists() or sys.stdin.tell() > 0


def plant(folder: Path) -> None:
    """Code of every kind that transformers and diffusers look for in a folder."""
    code = (
        "import os, pathlib\npathlib.Path(os.environ['MARK']).write_text('ran')\n"
        "class Evil:\n    @classmethod\n    def from_pretrained(cls, *args, **kwargs): return cls()\n"
        "    register_for_auto_class = from_config = from_pretrained\n"
    )
    for place in (folder, folder / "custom_generate"):
        place.mkdir(exist_ok=True)
        for name in ("evil.py", "generate.py", "pipeline.py"):
            (place / name).write_text(code + "\ngenerate = Evil\n")


def change(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | values))


def llava_with(folder: Path, kind: str) -> None:
    save_tiny("llava", folder)
    plant(folder)
    upstream = {name: f"somebody/else--{ref}" for name, ref in EVIL.items() if isinstance(ref, str)}
    config = json.loads((folder / "config.json").read_text())
    match kind:
        case "everywhere":
            for name in ("config", "tokenizer_config", "preprocessor_config", "processor_config"):
                change(folder / f"{name}.json", auto_map=EVIL)
        case "config":
            change(folder / "config.json", model_type="evil", auto_map=EVIL)
        case "upstream":
            change(folder / "config.json", model_type="evil", auto_map=upstream)
        case "model":
            change(folder / "config.json", model_type=NO_MODEL, auto_map=EVIL)
        case "tokenizer":
            change(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=EVIL)
        case "image processor":
            change(folder / "preprocessor_config.json", image_processor_type="Evil", auto_map=EVIL)
            change(folder / "processor_config.json", image_processor={"image_processor_type": "Evil", "auto_map": EVIL})
        case "processor":
            change(folder / "processor_config.json", processor_class="Evil", auto_map=EVIL)
        case "a part" | "a part of a TinyLLaVA":
            part = {"model_type": NO_MODEL, "auto_map": EVIL, "_name_or_path": str(folder)}
            change(folder / "config.json", vision_config=config["vision_config"] | part)
            if "Tiny" in kind:
                change(folder / "config.json", model_type="tinyllava")


@pytest.mark.parametrize(
    "kind",
    [
        "everywhere",
        "config",
        "upstream",
        "model",
        "tokenizer",
        "image processor",
        "processor",
        "a part",
        "a part of a TinyLLaVA",
    ],
)
def test_no_code_of_a_model_folder_runs(kind: str, tmp_path: Path, ran: Callable[[], bool]) -> None:
    llava_with(tmp_path / "model", kind)
    if kind in ("everywhere", "processor"):  # transformers has a class for each of their parts
        load_vlm(str(tmp_path / "model"), device="cpu")
    elif kind != "tokenizer":  # whose files transformers may read by a class of its own
        with pytest.raises(UserError) as refused:
            load_vlm(str(tmp_path / "model"), device="cpu")
        assert "trust_remote_code" not in str(refused.value)  # no advice that nobody can follow here
    else:
        with contextlib.suppress(UserError):
            load_vlm(str(tmp_path / "model"), device="cpu")
    assert not ran()


def test_no_code_of_a_part_runs_where_the_classes_are_used_directly(tmp_path: Path, ran: Callable[[], bool]) -> None:
    llava_with(tmp_path / "model", "a part of a TinyLLaVA")
    with pytest.raises(UserError, match="never run here"):
        TinyLlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert not ran()


def test_no_code_of_a_cnns_backbone_runs(tmp_path: Path, ran: Callable[[], bool]) -> None:
    backbone = {"model_type": NO_MODEL, "auto_map": EVIL, "_name_or_path": str(tmp_path), "hidden_size": 8}
    plant(tmp_path)
    frozen = CnnConfig(arch="frozen", image_size=28, heads={"verdict": ["real", "generated"]}, backbone_config=backbone)
    with pytest.raises(UserError, match="never run here"):
        CnnForDetection(frozen)
    change(tmp_path / "config.json", model_type="evil", auto_map=EVIL)
    for make in (lambda: backbone_config(str(tmp_path)), lambda: new_model(CnnConfig(arch="mai"), str(tmp_path))):
        with pytest.raises((UserError, AttributeError)):
            make()
    assert not ran()


def test_doctor_runs_no_code(tmp_path: Path, ran: Callable[[], bool]) -> None:
    llava_with(tmp_path / "model", "a part")
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError):
        estimate_config(str(tmp_path / "config.yaml"), str(tmp_path / "model"))
    assert not ran()


@pytest.mark.parametrize("kind", ["AutoModel", "AutoTokenizer", "a class of the folder", "the pipeline itself"])
def test_no_code_of_a_generator_runs(kind: str, tmp_path: Path, ran: Callable[[], bool]) -> None:
    renderer = pytest.importorskip("vlm_detect.generate.renderer")
    folder = tmp_path / "pipeline"
    shutil.copytree(nano_path("sd35"), folder)
    for place in (folder, folder / "text_encoder", folder / "tokenizer", folder / "scheduler"):
        plant(place)
    match kind:
        case "AutoModel":
            change(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
            change(folder / "text_encoder" / "config.json", model_type="evil", auto_map=EVIL)
        case "AutoTokenizer":
            change(folder / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
            change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="Evil", auto_map=EVIL)
            change(folder / "tokenizer" / "config.json", model_type="evil", auto_map=EVIL)
        case "a class of the folder":
            change(folder / "model_index.json", scheduler=["evil", "Evil"])
        case "the pipeline itself":
            change(folder / "model_index.json", _class_name=["evil", "Evil"])
    with pytest.raises(UserError) as refused:
        renderer.Renderer(ResolvedModel("evil", str(folder)), renderer.Sampling(), "cpu")
    assert "trust_remote_code" not in str(refused.value)
    assert not ran()


def test_transformers_is_unchanged_outside_of_the_helper(tmp_path: Path) -> None:
    from transformers import AutoConfig, dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    change(tmp_path / "config.json", model_type="evil", auto_map=EVIL)
    with pytest.raises(UserError, match="never run here"):
        load_untrusted(AutoConfig, tmp_path)
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0


def calls() -> list[tuple[Path, ast.Call, str]]:
    """(file, call, the name that is called) of every call in the project's own code."""
    found = []
    for path in (path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((path, node, getattr(node.func, "attr", getattr(node.func, "id", ""))))
    return found


def test_every_loading_goes_through_the_helper() -> None:
    allowed = {
        "PeftModel",  # reads tensors and settings, and has no code of a repository to run
        "MoondreamImageProcessor",  # our own class, which reads numbers from a JSON file
        "super()",  # inside our own `from_pretrained` of a configuration, which the helper calls
    }
    loaders = {"from_pretrained", "from_config", "_from_config", "from_pipe", "from_single_file", "for_model"}
    found = [(path, ast.unparse(call.func)) for path, call, name in calls() if name in loaders]
    outside = [
        f"{path.relative_to(REPOSITORY)}: {function}"
        for path, function in found
        if path != HELPER and function.rpartition(".")[0] not in allowed and function != "AutoConfig.for_model"
    ]
    assert outside == []
    assert sum(path == HELPER for path, _ in found) == 2


def test_the_helper_never_trusts() -> None:
    class Loader:
        @staticmethod
        def from_pretrained(*args: Any, **options: Any) -> dict[str, Any]:
            return options

        from_config = from_pretrained

    for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": None}):
        assert load_untrusted(Loader, "a", **options) == {"trust_remote_code": False}
        assert build_untrusted(Loader, "a", **options) == {"trust_remote_code": False}


def test_nothing_is_unpickled() -> None:
    for path, call, _ in calls():
        function = ast.unparse(call.func)
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{path.relative_to(REPOSITORY)}: {function}"
        if function == "torch.load":
            assert words.get("weights_only") == "True", where
        assert words.get("allow_pickle", "False") == "False", where
        assert words.get("trust_remote_code", "False") == "False", where
        assert not function.startswith(("pickle.", "cPickle.", "dill.", "cloudpickle.", "joblib.", "marshal.")), where
        assert function not in ("yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"), where
        assert words.get("shell", "False") == "False", where
