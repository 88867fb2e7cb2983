"""`python -m vlm_detect VERB`, and `accelerate launch --quiet -m vlm_detect VERB`."""

from vlm_detect.cli import main

if __name__ == "__main__":
    main()
