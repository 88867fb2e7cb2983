"""vlm-detect: finetune small vision-language models to tell AI-generated images from real photos, and to say why.

The package holds what two scripts would share. The programs that use it stand in `data_gen/`, `recipes/` and `eval/`;
`vlm-detect --help` lists the verbs that need no clone.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vlm-detect")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
