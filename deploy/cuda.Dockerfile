# The server, and every other verb, on NVIDIA GPUs. CUDA comes with torch's wheel; the host has the driver and the NVIDIA
# container toolkit.
#
#     docker build -f deploy/cuda.Dockerfile -t vlm-detect:cuda .
#     docker run --gpus all -p 127.0.0.1:8000:8000 -e VLM_DETECT_API_KEY -v weights:/weights vlm-detect:cuda \
#         serve --model auto --host 0.0.0.0

FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY vlm_detect ./vlm_detect
RUN pip install --constraint constraints.txt ".[serve,heif,onnx,quant]"

FROM python:3.12.11-slim-bookworm
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Weights are no part of the image: what is downloaded, and what runs leave, lies on a volume.
RUN useradd --uid 10001 --create-home app && install --directory --owner=app /weights
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/weights HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv
USER 10001
WORKDIR /home/app
VOLUME /weights
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# Beyond loopback the server wants a key: VLM_DETECT_API_KEY, or --api_keys FILE.
ENTRYPOINT ["vlm-detect"]
CMD ["serve", "--model", "nano", "--host", "0.0.0.0"]
