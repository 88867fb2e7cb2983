"""A Hugging Face Space: upload an image, see the verdict, its reasons and where it comes from.

    pip install -r requirements.txt && python app.py        # http://127.0.0.1:7860

The variable VLM_DETECT_MODEL of the Space names the model: a Hub id, or a folder of the Space; by default `nano`, which
tries the page out and knows nothing of generated images. Uploads are deleted after an hour.
"""

from __future__ import annotations

import os
from typing import Any

import gradio as gr

from vlm_detect import Detector
from vlm_detect.apps.limits import NOT_FOR
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected

HOUR_S = 3600


def page(detector: Detector) -> gr.Blocks:
    """The page of one model."""

    def judge(path: str | None) -> tuple[dict[str, float], str, str, Any]:
        if path is None:
            raise gr.Error("Choose an image first")
        try:
            verdict = detector(path)
            explanation = verdict.explanation()
            overlay = verdict.map().overlay(verdict.image)
        except (ImageRejected, UserError) as error:
            raise gr.Error(f"This image cannot be judged: {error}") from error
        facts = [f"**{verdict.label}**", f"log-odds {verdict.log_odds:+.2f} nats"]
        facts += [part for part in (verdict.why_unsure, verdict.caveat, *verdict.contradictions) if part]
        reasons = [f"- {reason.text} *({reason.status})*" for reason in explanation.reasons]
        shares = {"generated": verdict.p_fake, "real": 1 - verdict.p_fake}
        return shares, ". ".join(facts) + ".", "\n".join(reasons) or explanation.text, overlay.convert("RGB")

    with gr.Blocks(title="vlm-detect", delete_cache=(HOUR_S, HOUR_S)) as blocks:
        gr.Markdown(f"# Is this image AI-generated?\nModel: `{detector.name}`")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard"])
                button = gr.Button("Judge", variant="primary")
            with gr.Column():
                shares = gr.Label(label="Probability")
                verdict = gr.Markdown(elem_id="verdict")
                reasons = gr.Markdown(label="Reasons")
                overlay = gr.Image(label="Evidence: orange for generated, blue for real", interactive=False)
        gr.Markdown("### What a verdict may not be used for\n" + "\n".join(f"- {limit}" for limit in NOT_FOR))
        # One image at a time: a detector belongs to one thread.
        button.click(judge, image, [shares, verdict, reasons, overlay], concurrency_limit=1, api_name="judge")
    return blocks


if __name__ == "__main__":
    page(Detector(os.environ.get("VLM_DETECT_MODEL", "nano"))).launch()
