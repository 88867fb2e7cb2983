"""constraints.txt with other versions of torch and transformers, for continuous integration.

    python .github/versions.py {pinned,oldest,newest} > constraints-oldest.txt

`oldest` are the lower bounds of pyproject.toml, `newest` the newest versions within its bounds. Pip then chooses the
versions of their dependencies.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = ("torch", "transformers")
FOLLOWING = ("huggingface_hub", "hf-xet", "tokenizers", "safetensors", "sympy", "networkx")


def constraints(versions: str) -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if versions == "pinned":
        return lines
    kept = [line for line in lines if line.partition("==")[0] not in (*CHOSEN, *FOLLOWING)]
    if versions == "newest":
        return kept
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in project["dependencies"])
    bounds = {match.group(1): match.group(2) for match in found if match}
    return [*kept, *(f"{name}=={bounds[name]}.*" for name in CHOSEN)]


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("pinned", "oldest", "newest"):
        sys.exit("give one of pinned, oldest, newest")
    print("\n".join(constraints(sys.argv[1])))
