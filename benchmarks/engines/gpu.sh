#!/bin/sh
# Runs the tests that need a GPU, and the benchmark of accelerators, on a machine that has torch and a CUDA device.
#
#   benchmarks/engines/gpu.sh OUT [WHEELS]
#
# OUT gets gpu.json, gpu.md, site.txt, tests.txt and nvidia-smi.txt. WHEELS is a folder of wheels for what that machine lacks,
# where pip has no network; the whole site at the end needs paho-mqtt, iotcore and rich. Takes about five minutes. Ends with
# 0 if the tests pass and the benchmarks' goals hold.
set -eu
mkdir -p "${1:?usage: benchmarks/engines/gpu.sh OUT [WHEELS]}"
out=$(cd "$1" && pwd)
wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.."
if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || true
failed=0
# The tests' conftest wants brokers and more packages; these tests need neither.
timeout 120 python3 -m pytest --noconftest -q -ra -p no:cacheprovider -o addopts= -o filterwarnings=default -o timeout=100 \
    -m gpu tests/unit/edge_agent/runtime/test_cuda.py >"$out/tests.txt" 2>&1 || failed=$?
tail -n 40 "$out/tests.txt"
timeout 200 python3 benchmarks/engines/gpu.py "$out" || failed=$?
models=$(mktemp -d)
python3 -m s2m3 models random openai/clip-vit-base-patch16 --into "$models"
timeout 90 python3 -m s2m3 bench batch hub/retrieval-clip-b16 --models "$models" --accelerator cuda --broker embedded --seconds 5 \
    >"$out/site.txt" || failed=$?
rm -r "$models"
cat "$out/site.txt"
exit "$failed"
