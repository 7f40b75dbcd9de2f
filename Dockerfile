# harness in a container, for CPUs and for NVIDIA GPUs.
#
#   docker build --target cpu -t harness:cpu .
#   docker build --target cuda -t harness:cuda .
#   docker run --rm -v "$PWD:/work" harness:cpu run my.json
#   docker run --rm --gpus all -v "$PWD:/work" harness:cuda run my.json
#
# Models and tokens are cached in /cache: mount a volume there to keep them.

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HARNESS_CACHE=/cache/harness HF_HOME=/cache/huggingface
RUN useradd --create-home harness && mkdir -p /cache /work && chown harness /cache /work
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY harness harness
COPY plugins plugins

FROM base AS cpu
# The index of PyTorch has the build without CUDA, in the version that constraints.txt names.
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch && pip install -c constraints.txt .
USER harness
WORKDIR /work
ENTRYPOINT ["harness"]

FROM base AS cuda
# The wheel of torch for Linux brings CUDA; the host needs the NVIDIA driver and its container toolkit only.
RUN pip install -c constraints.txt torch && pip install -c constraints.txt .
USER harness
WORKDIR /work
ENTRYPOINT ["harness"]
