#!/usr/bin/env bash
# What the image does, without a container engine: the packages of the target `cpu` in a fresh environment, the exported
# checkpoint, the image's environment and command as a user without rights, its health check, the check of a note, and
# SIGTERM. Not shown: that the image builds, and its base. Also prints what the image would weigh.
#
#   deploy/smoke.sh [FOLDER]   FOLDER of `notellm export`; without it one is made by .venv (a minute)
#   PYTHON                     the interpreter, python3 by default; it must be one that other users may run
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
folder=$(mktemp -d /tmp/notellm-smoke.XXXXXX)
service=
trap 'kill ${service:+"$service"} 2>/dev/null || true; rm -rf "$folder"' EXIT
step() { printf '== %s\n' "$*"; }

step "packages of locks/serve.txt"
"${PYTHON:-python3}" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" download --no-deps --require-hashes --dest "$folder/wheels" -r "$root/locks/serve.txt"
"${pip[@]}" install --no-deps --no-index --find-links "$folder/wheels" --require-hashes -r "$root/locks/serve.txt"
git clone --quiet --depth 1 "file://$root" "$folder/source" # a build writes into its folder
"$root/.venv/bin/python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir "$folder/wheels" "$folder/source"
"${pip[@]}" install --no-deps "$folder"/wheels/notellm-*.whl
[[ -z $(find "$folder/venv" -name torch -path '*site-packages/torch') ]]

step "the checkpoint"
if [[ $# -gt 0 ]]; then
    cp -r "$1" "$folder/model"
else
    "$root/.venv/bin/notellm" export --out "$folder/model"
fi

step "an estimate of the image, in MB: packages and checkpoint packed, as a registry keeps them, without the base"
packages=$(du --bytes --total "$folder"/wheels | tail -1 | cut -f1)
checkpoint=$(tar --create --directory "$folder" model | gzip -1 | wc --bytes)
echo "packages $((packages / 10**6)), checkpoint $((checkpoint / 10**6)), together $(((packages + checkpoint) / 10**6))"

step "notellm serve, as user 10001"
install -d -m 700 "$folder/data" "$folder/cache" "$folder/home"
as_user=()
if [[ $EUID -eq 0 ]]; then
    as_user=(setpriv --reuid 10001 --regid 10001 --clear-groups)
    chown 10001:10001 "$folder/data" "$folder/cache" "$folder/home"
    chmod 755 "$folder"
    "${as_user[@]}" "$folder/venv/bin/python" -c "" || { echo "user 10001 cannot run it: name another PYTHON"; exit 1; }
fi
key=$("$folder/venv/bin/python" -c 'import secrets; print(secrets.token_hex(32))')
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
env --ignore-environment PATH="$folder/venv/bin:/usr/bin:/bin" HOME="$folder/home" PYTHONUNBUFFERED=1 \
    NOTELLM_HOST=127.0.0.1 NOTELLM_BOOTSTRAP_KEY="$key" NOTELLM_PORT="$port" NOTELLM_DATA_DIR="$folder/data" NOTELLM_CACHE_DIR="$folder/cache" \
    NOTELLM_CHECKPOINT="$folder/model" NOTELLM_SAMPLE_NOTES=0 HF_HOME="$folder/cache/huggingface" HF_HUB_OFFLINE=1 \
    TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "${as_user[@]}" notellm serve 2>"$folder/log" &
service=$!
ask() { "$folder/venv/bin/python" -c "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:$port$1', timeout=4)"; }
deadline=$((SECONDS + 300))
until ask /readyz 2>/dev/null; do
    kill -0 "$service" 2>/dev/null && ((SECONDS < deadline)) || { cat "$folder/log"; echo "it is not ready"; exit 1; }
    sleep 0.2
done
ask /livez # the image's HEALTHCHECK

step "a note is added, found and deleted"
NOTELLM_API_KEY="$key" "$folder/venv/bin/python" "$root/deploy/helm/notellm/files/check_service.py" "http://127.0.0.1:$port"

step "SIGTERM"
kill -TERM "$service"
wait "$service" || [[ $? -eq 143 ]] # uvicorn ends by the signal that it was sent
service=
[[ -z $(ls -A "$folder/cache") ]] # nothing was converted
echo "passed"
