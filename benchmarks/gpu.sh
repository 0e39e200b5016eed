#!/usr/bin/env bash
# The first ten minutes on a GPU: is it right, how fast is it, what do the rules cost. Needs torch, timm, safetensors and
# numpy, and nothing else of this project's packages. `bash benchmarks/gpu.sh [FILE.json] [further options of benchmarks/gpu.py]`
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-outputs/benchmarks/gpu.json}"
shift || true
mkdir -p "$(dirname "$out")"
PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.gpu --out "$out" "$@"
