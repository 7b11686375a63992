#!/usr/bin/env bash
# Looks for known vulnerabilities of what the images hold: make audit.
#
# Exit status: 0: there are none. 1: there are some, or a package could not be looked up. 3: no vulnerability service
# answers, so that nothing is known. It is asked about a package with known vulnerabilities first: one that finds none
# there, such as a mirror of the package index alone, would find none anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

PIP_AUDIT=${PIP_AUDIT:-pip-audit}
PYTHON=${PYTHON:-python3} # has the package "packaging", as pip-audit needs it
KNOWN='jinja2==2.4.1'
COULD_NOT_ASK=3

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "$KNOWN" >"$folder/known.txt"
"$PIP_AUDIT" --disable-pip --no-deps --timeout 5 -r "$folder/known.txt" >"$folder/answer" 2>&1 || true
if ! grep -qE '(CVE|GHSA|PYSEC)-[0-9a-z]' "$folder/answer"; then
    {
        tail -n 3 "$folder/answer"
        echo '######################################################################'
        echo '## NOT AUDITED: no vulnerability service answers from this machine. ##'
        echo '## Run `make audit` where one can be reached.                        ##'
        echo '######################################################################'
    } >&2
    exit $COULD_NOT_ASK
fi
for lock in serve gpu; do "$PYTHON" deploy/image_packages.py "locks/$lock.txt" >"$folder/$lock.txt"; done
# --strict: without it a package that could not be looked up counts as one without vulnerabilities.
"$PIP_AUDIT" --strict --require-hashes --disable-pip -r "$folder/serve.txt" -r "$folder/gpu.txt" || exit 1
# PyTorch is installed by its version, without a lock: it is looked up without the CUDA packages that it brings.
sed -n 's/^ARG TORCH_VERSION=/torch==/p' Dockerfile | sort -u >"$folder/torch.txt"
"$PIP_AUDIT" --strict --no-deps --disable-pip -r "$folder/torch.txt" || exit 1
