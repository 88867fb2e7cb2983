"""The entry point of worker processes: what the server that forks them imports first."""

from vlm_detect.errors import set_up_process

set_up_process()
