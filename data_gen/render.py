"""Step 2 of 3: render the twins of captioned photos. The same command resumes.

    python data_gen/render.py --captions work/captions --out work/renders

The program is vlm_detect/generate/render.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.render import main

if __name__ == "__main__":
    run_main(main)
