"""Upload a finished dataset folder to the Hub, with card and audit: `--push_to_hub OWNER/NAME`."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from vlm_detect.errors import UserError, first_line


def push_dataset(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload `folder` as the dataset `name`, created if necessary; returns its URL.

    Existing files are not sent again. The dataset is private, because photos may have restrictive licences.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=name, repo_type="dataset", commit_message="Upload a dataset of vlm-detect"
        )
    except (HfHubHTTPError, OSError) as error:  # OSError: no network
        reason = first_line(error)
        raise UserError(
            f"{name}: uploading the dataset failed ({reason}); log in with `hf auth login`, then run the same "
            f"command again ({folder} is complete)"
        ) from error
    return str(address)
