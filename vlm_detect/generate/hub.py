"""A finished dataset folder to the Hub, card and audit included: `--push_to_hub OWNER/NAME`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vlm_detect.errors import UserError


@dataclass(frozen=True)
class Upload:
    """Where the finished dataset goes besides."""

    push_to_hub: str | None = field(default=None, metadata={"help": "Upload the dataset as OWNER/NAME, private."})

    def __post_init__(self) -> None:
        if self.push_to_hub is None:
            return
        try:
            huggingface_hub.utils.validate_repo_id(self.push_to_hub)
        except HFValidationError as error:  # found out before the work, not behind it
            raise UserError(f"--push_to_hub {self.push_to_hub}: no Hub name like owner/name") from error


def push_dataset(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload `folder` as the dataset `name`, made where it is not there yet; returns its address.

    What is there already is not sent again. Private, for the photos' licences are not ours to judge.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=name, repo_type="dataset", commit_message="Upload a dataset of vlm-detect"
        )
    except (HfHubHTTPError, OSError) as error:  # OSError: no network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: the Hub did not take the dataset ({reason}); log in with `hf auth login`, then run the same "
            f"command again ({folder} is complete)"
        ) from error
    return str(address)
