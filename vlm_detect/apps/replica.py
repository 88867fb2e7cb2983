"""One replica of a server: the process that `supervisor.py` starts, not a program of its own.

What it serves comes as one line of JSON on stdin: {"models", "cnn", "expert", "settings", "number", "socket"}. It
listens on the Unix socket once its models are loaded, and drains and ends when stdin is closed, which happens however
the supervisor ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

from vlm_detect.errors import run_main


def main(argv: list[str]) -> None:
    spec = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    import torch

    from vlm_detect.apps.logs import set_up_logs
    from vlm_detect.apps.server import create_app, load_models, run
    from vlm_detect.apps.settings import ServerSettings

    settings = ServerSettings(**spec["settings"])
    set_up_logs(settings.log_json, spec["number"])
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(spec["number"] % torch.cuda.device_count())
    detectors, cnn = load_models(spec["models"], settings, spec["cnn"], spec["expert"])
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(spec["socket"])
        bound.listen()
        run(create_app(detectors, settings, cnn, is_replica=True), settings, bound)


def _end_with_supervisor() -> None:
    # Not sys.stdin.buffer.read(): its lock would be held when Python exits, which aborts it.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    run_main(main)
