"""The preload module of the fork server of worker processes."""

from vlm_detect.errors import set_up_process

set_up_process()
