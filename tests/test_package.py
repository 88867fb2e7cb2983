"""`import vlm_detect` changes nothing in the process; a program that runs through `run_main` settles what it needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# What a module can change without a trace in its own namespace.
STATE = """
import json, logging, os, signal, sys, warnings
def state():
    loggers = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    return {
        "environment": dict(os.environ), "hooks": [repr(type(finder)) for finder in sys.meta_path],
        "loggers": {name: level for name, level in loggers.items() if level}, "level": logging.root.level,
        "filters": [repr(one) for one in warnings.filters], "path": list(sys.path), "excepthook": repr(sys.excepthook),
    }
before = state()
import vlm_detect
after = state()
print(json.dumps([before, after, sorted(name for name in sys.modules if "." not in name)]))
"""


def test_importing_the_package_has_no_side_effects():
    import json

    done = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    before, after, modules = json.loads(done.stdout)
    assert after == before
    assert not {"torch", "transformers", "numpy", "yaml"} & set(modules)


def test_dir_of_the_package_lists_its_public_names():
    code = "import vlm_detect; print(*dir(vlm_detect)); from vlm_detect import *; print(Detector, Verdict)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, classes = done.stdout.splitlines()
    assert {"Detector", "Verdict", "__version__", "__doc__"} <= set(listed.split())
    assert classes.count("vlm_detect.infer.detector") == 2


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_of_a_program_spin_shortly_unless_the_user_says_otherwise(given, spins):
    said = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in said} | given
    code = (
        "import os, sys\nfrom vlm_detect.errors import run_main\ndef main(argv):\n"
        "    assert 'torch' not in sys.modules\n    print(os.environ.get('GOMP_SPINCOUNT'))\nrun_main(main)"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == spins
