#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, in under 9 minutes:
#
#     benchmarks/gpu_check.sh DIRECTORY
#
# It needs nvcc, cmake, ninja, a C++ compiler and a Python (PYTHON, default python3) with torch,
# pybind11 and pytest; nothing is installed or downloaded. Each step has a log in DIRECTORY, a later
# step runs even where an earlier one failed, and summary.txt says how all of them ended.
set -uo pipefail

out=$(mkdir -p "${1:?usage: benchmarks/gpu_check.sh DIRECTORY}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
failed=0
: >"$out/summary.txt"

# step NAME SECONDS COMMAND...: at most that long, and never past the 510th second of all.
step() {
  local name=$1 limit=$2 rc started=$SECONDS
  shift 2
  ((limit = limit < 510 - SECONDS ? limit : 510 - SECONDS))
  if ((limit > 0)); then
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    rc=$?
  else
    rc=124
  fi
  ((rc == 0)) || failed=1
  echo "$name: exit code $rc after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
}

versions() {
  uname -srm
  nvidia-smi
  nvcc --version
  "$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
}

build() {
  local sm
  sm=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  rm -rf build/gpu ragrad_ext/_native*.so
  cmake -G Ninja -S . -B build/gpu -DRAGRAD_CUDA_ARCHITECTURES="$sm" \
    -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build build/gpu &&
    cp build/gpu/_native*.so ragrad_ext/ &&
    "$python" -m ragrad_ext doctor
}

# Freed memory must not stay with torch: a write beyond a tensor would hit what is still allocated.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 \
    "$python" -m benchmarks.gpu_small
}

export python
export -f versions build sanitize
step versions 30 bash -c versions
step build 150 bash -c build
step tests 90 "$python" -m pytest -m gpu -o addopts="-ra --strict-markers" --ignore tests/detection
step memcheck 60 bash -c 'sanitize memcheck'
step racecheck 60 bash -c 'sanitize racecheck'
# The table is written anew after every case: what a time limit cuts off is the end.
step kernels 510 "$python" -m benchmarks.kernels --device cuda --json "$out/kernels_cuda.json" \
  --shapes ladder_{1M,4M,16M,64M,256M,1B} tiny_{53,300} resnet50 vit_l convnext_l cspdarknet_l vit_g

{ tail -n 3 "$out/tests.log"; tail -n 60 "$out/kernels.log"; } >>"$out/summary.txt"
cat "$out/summary.txt"
exit $failed
