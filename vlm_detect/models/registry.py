"""From an ID (a Hub id, a folder, a run directory, `nano`, `auto`) to a loaded model.

    vlm = load_vlm("nano")                                   # the embedded moondream
    vlm = load_vlm("vikhyatk/moondream2", adapter="runs/moondream_lora")  # or an official variant's final.pt
    vlm = load_vlm("runs/moondream_lora")                    # a run directory names its base model itself
    vlm = load_vlm("tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B")  # or any image-text model of transformers

Hub ids are loaded at the pinned revision below; remote code is never run.
"""

from __future__ import annotations

import copy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from vlm_detect.errors import UserError, first_line
from vlm_detect.extras import asked_for
from vlm_detect.hub_cache import is_cached
from vlm_detect.machine import best_device, default_dtype, free_device_bytes
from vlm_detect.models.attention import keep_masks
from vlm_detect.models.base import FAMILIES, VLM, dtype_in
from vlm_detect.models.bases import base_of, base_remedy, head_base
from vlm_detect.models.generic import ChatVLM
from vlm_detect.models.generic.loading import is_supported
from vlm_detect.models.moondream.configuration import DEFAULT_RELEASE, HUB_ID
from vlm_detect.models.nano import NanoName, nano_path
from vlm_detect.models.run_checksums import check_run_files
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava.checkpoint import is_factory_folder
from vlm_detect.models.untrusted import load_untrusted
from vlm_detect.quiet import no_bars_in_logs
from vlm_detect.schema import check_folder

Role = Literal["vlm", "tinyllava", "captioner", "renderer"]
_Dtype = torch.dtype | Literal["stored"] | None

PINNED_REVISIONS = {HUB_ID: DEFAULT_RELEASE}

# For `auto`: real models, largest first, with the accelerator memory for inference in GB, in a dtype of two bytes.
_AUTO: dict[str, list[tuple[str, float]]] = {
    "vlm": [(HUB_ID, 6.0)],
    "tinyllava": [(TINYLLAVA_ID, 9.0)],
    "renderer": [
        ("stabilityai/stable-diffusion-3.5-large", 40.0),
        ("stabilityai/stable-diffusion-3.5-medium", 18.0),
    ],
}
# What `nano` is called for each, and its folder.
_NANO: dict[str, tuple[str, NanoName]] = {
    "vlm": ("nano", "moondream"),
    "tinyllava": ("tinyllava-nano", "tinyllava"),
    "renderer": ("nano", "sd35"),
}
NANO_NAMES = tuple({name for name, _ in _NANO.values()})


@dataclass(frozen=True)
class ResolvedModel:
    """`name` is displayed and recorded, `path_or_id` is loaded."""

    name: str
    path_or_id: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path_or_id).is_dir()


def free_accelerator_gb() -> float:
    """Free memory of this process's CUDA device, or of MPS, in GB; 0 without one."""
    return (free_device_bytes(best_device()) or 0) / 1e9


def _weights_in_float32(family: str) -> bool:
    """Whether a GPU holds the real model in float32, as those without bfloat16 do for moondream2."""
    if family == "renderer" or (device := best_device()).type == "cpu":
        return False
    return default_dtype(device, trained_in_float16=family == "tinyllava") is torch.float32


def resolve_id(model_id: str, role: Role = "vlm", revision: str | None = None) -> ResolvedModel:
    """Resolve an ID on this machine. `auto` is the largest real model that fits the free memory, else `nano`."""
    family = "vlm" if role == "captioner" else role
    if model_id == "auto":
        free_gb = free_accelerator_gb()
        factor = 2 if _weights_in_float32(family) else 1
        model_id = next((name for name, needed_gb in _AUTO[family] if factor * needed_gb <= free_gb), "nano")
        message = f"{role}: auto chose {model_id} ({free_gb:.0f} GB of accelerator memory free)"
        print(message, file=sys.stderr)  # on stdout it would mix with the output of `--json`
    nano, folder_name = _NANO["tinyllava" if model_id == _NANO["tinyllava"][0] else family]
    if model_id in ("nano", nano):
        return ResolvedModel(nano, str(nano_path(folder_name)))
    folder = Path(model_id)
    if folder.is_dir():
        return ResolvedModel(model_id, model_id)
    if folder.is_absolute() or model_id.startswith(("./", "../", "~")) or model_id.count("/") != 1:
        raise UserError(
            f"{role} {model_id!r} is neither a folder nor a Hub id; give owner/name, a model folder, or nano"
        )
    if folder.parent.is_dir() and not is_cached(model_id):
        raise UserError(
            f"{role} {model_id}: the folder {folder.parent} has no {folder.name}; for a Hub id, download it "
            "first with hf download"
        )
    return ResolvedModel(model_id, model_id, revision or PINNED_REVISIONS.get(model_id))


def load_vlm(
    model_id: str = "auto",
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    dtype: _Dtype = None,
    device: torch.device | str | None = None,
    **load_options: Any,
) -> VLM:
    """Load a model, with a LoRA adapter if one is given or `model_id` is a run directory.

    `dtype` defaults to the device's best one for these weights; "stored" keeps the checkpoint's. `load_options` go to
    `from_pretrained` (quantization_config, which computes in `dtype`, attn_implementation, ...). Raises UserError if
    the model cannot be found, downloaded or read.
    """
    model_id = head_base(model_id) or model_id
    own_base: str | None = None  # the run that says itself what it was trained on
    if adapter is None and (Path(model_id) / "adapter_config.json").is_file() and not is_factory_folder(model_id):
        adapter, model_id = model_id, adapter_base(model_id)
        own_base = str(adapter)
    for folder in (adapter, model_id):
        if folder is not None:
            check_folder(folder)
            check_run_files(folder)
    device = torch.device(device) if device is not None else best_device()
    options = dict(load_options)
    if "quantization_config" in options:
        options["device_map"] = {"": device}
    try:
        resolved = resolve_id(model_id, revision=revision)
        vlm = _load_reachable(resolved, device, dtype, options)
    except UserError as error:
        if own_base is None:
            raise
        raise UserError(f"{error}; where the base is elsewhere, {base_remedy(own_base)}") from error
    if dtype is torch.float16:
        vlm.refuse_float16("--dtype float16")
    if "quantization_config" not in options:
        vlm.model = vlm.model.to(device)
    keep_masks(vlm.model)
    if adapter is not None:
        from vlm_detect.models.expert_tokens import attach_saved  # imports the CNNs

        vlm = attach_saved(vlm, adapter)
        vlm.model = load_adapter(vlm.model, adapter)
    vlm.model.eval()
    return vlm


def _load_reachable(resolved: ResolvedModel, device: torch.device, dtype: _Dtype, options: dict[str, Any]) -> VLM:
    """As `_load`; every failure becomes a UserError."""
    try:
        check_reachable(resolved)
        with no_bars_in_logs("transformers"):
            return _load(resolved, device, dtype, options)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an untrusted folder can fail in any way, and transformers raises any exception
        raise UserError(explain_load_error(resolved, error)) from error


def _load(resolved: ResolvedModel, device: torch.device, dtype: _Dtype, options: dict[str, Any]) -> VLM:
    """The model in its family, not yet on `device` unless it is quantised."""
    path, hub_options = resolved.path_or_id, _revision(resolved)
    stored, _ = PreTrainedConfig.get_config_dict(path, **hub_options)  # a plugin's type is known when it is loaded
    family: type[VLM] = ChatVLM
    if (model_type := stored.get("model_type")) in FAMILIES:
        family = FAMILIES[model_type]
    elif not is_supported(load_untrusted(AutoConfig, path, **hub_options)):
        raise UserError(
            f"{resolved.name}: model type {model_type!r} is not supported; use moondream2 ({HUB_ID}), "
            f"TinyLLaVA ({TINYLLAVA_ID}), nano, an image-text-to-text model of transformers, or install a package that "
            "supports it"
        )
    if dtype is None:
        dtype = default_dtype(device, trained_in_float16=family.trained_in_float16(stored))
    options = {**options, "dtype": None if dtype == "stored" else dtype}
    quantisation: Any = options.get("quantization_config")
    if getattr(quantisation, "load_in_4bit", False) and options["dtype"] is not None:
        quantisation.bnb_4bit_compute_dtype = options["dtype"]
    vlm = family(*family.load(path, **hub_options, **options), resolved.name, resolved.revision)
    vlm.stored_dtype = dtype_in(stored)
    return vlm


def check_reachable(resolved: ResolvedModel, file: str = "config.json") -> None:
    """Raise `UserError` if a Hub repository is neither cached nor accessible; downloads nothing.

    One request without retries: a download would retry for half a minute before reporting that there is no network.
    """
    if resolved.is_local:
        return
    if isinstance(try_to_load_from_cache(resolved.path_or_id, file, revision=resolved.revision), str):
        return
    try:
        model_info(resolved.path_or_id, revision=resolved.revision, timeout=20)
    except Exception as error:  # the Hub client raises the errors of its HTTP library, which varies
        raise UserError(explain_load_error(resolved, error)) from error


def _revision(resolved: ResolvedModel) -> dict[str, Any]:
    return {"revision": resolved.revision} if resolved.revision and not resolved.is_local else {}


def is_full_size(model_id: str) -> bool:
    """Whether a worker on a cluster needs a GPU for the model: any but the nano ones and runs on them."""
    folder = Path(model_id)
    name = adapter_base(folder) if (folder / "adapter_config.json").is_file() else resolve_id(model_id).name
    return name not in NANO_NAMES


def adapter_base(run: str | Path) -> str:
    """The ID of the model that the adapter in `run` was trained on."""
    return base_of(run, NANO_NAMES)


def load_adapter(model: Any, adapter: str | Path) -> Any:
    """Wrap `model` with the PEFT adapter of a run directory, or with moondream's own LoRA variant (`final.pt`).

    Raises UserError if it does not fit.
    """
    from peft import PeftModel
    from peft.utils import ModulesToSaveWrapper

    from vlm_detect.models.lora_weights import set_weights
    from vlm_detect.models.moondream.variant import is_variant, load_variant
    from vlm_detect.models.parts import EXPERT_TOKENS, is_vision, keep_in_float32

    if is_variant(adapter):
        return load_variant(model, adapter)

    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(
            f"adapter {adapter}: no adapter_config.json; give the --output_dir of a finished recipe, or the "
            "final.pt of moondream's own tuning"
        )
    try:
        with warnings.catch_warnings():  # peft 0.21 asks for gradient checkpointing by its name in transformers 4
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # an error below
            wrapped = PeftModel.from_pretrained(model, str(adapter))
        for name, module in wrapped.named_modules():
            if isinstance(module, ModulesToSaveWrapper) and (is_vision(name) or name.endswith(EXPERT_TOKENS)):
                keep_in_float32(module)
        # Again, for peft has rounded those modules to the model's dtype.
        if set_weights(wrapped, adapter) or not wrapped.load_adapter(str(adapter), "default").missing_keys:
            return wrapped
    except SafetensorError as error:
        raise UserError(f"adapter {adapter} is damaged ({error}): use another checkpoint of the run") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"adapter {adapter} does not fit this model: {first_line(error)}") from error
    # Of an adapter for another model peft loads what has the same name.
    raise UserError(f"adapter {adapter} does not fit this model: it was trained on {adapter_base(adapter)}")


def without_adapter(vlm: VLM) -> VLM | None:
    """The base of a model with a LoRA, which shares its weights; None where there is none to share."""
    from peft import PeftModel
    from peft.utils import AuxiliaryTrainingWrapper

    from vlm_detect.models.moondream.variant import has_projection

    if not isinstance(vlm.model, PeftModel):
        return None
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in vlm.model.modules()):
        return None  # a module that was trained in full: `unload` keeps the trained one
    if has_projection(vlm.model):
        return None  # as well
    weights = {id(tensor): tensor for tensor in (*vlm.model.parameters(), *vlm.model.buffers())}
    base: Any = copy.deepcopy(vlm.model, weights)
    return type(vlm)(base.unload(), vlm.processor, vlm.name, vlm.revision)


def explain_load_error(resolved: ResolvedModel, error: Exception) -> str:
    """One line on why a model could not be loaded, with a remedy."""
    cause: BaseException | None = error
    while cause is not None:
        page = f"https://huggingface.co/{resolved.path_or_id}"
        if isinstance(cause, GatedRepoError):
            return f"{resolved.name} is gated: accept its licence at {page} and run `hf auth login`"
        if isinstance(cause, RevisionNotFoundError):
            return f"{resolved.name} has no revision {resolved.revision!r}: see {page}/tree/main"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{resolved.name} is not on the Hugging Face Hub (or is private: run `hf auth login`)"
        cause = cause.__cause__ or cause.__context__
    if not resolved.is_local and not isinstance(try_to_load_from_cache(resolved.path_or_id, "config.json"), str):
        return (
            f"{resolved.name} is not a local folder, could not be downloaded from the Hub and is not in the "
            "local cache: check the name and the network, or use --model nano"
        )
    if needed := asked_for(error):
        return f"{resolved.name} {needed}"
    from vlm_detect.models.cnn.configuration import is_cnn_run  # which imports much that a VLM does without

    if is_cnn_run(resolved.path_or_id):
        return f"{resolved.name} is a CNN, which is not supported here: use it with vlm-detect explain or benchmark"
    reason = (str(error).strip().splitlines() or [""])[0]
    named = reason if isinstance(error, OSError | ValueError) and reason else f"{type(error).__name__}: {reason}"
    return f"{resolved.name} could not be loaded: {named}"
