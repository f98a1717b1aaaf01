#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, in under 9 minutes:
#
#     benchmarks/gpu_check.sh DIRECTORY [STEP...]
#
# It needs nvcc, cmake, ninja, a C++ compiler and a Python (PYTHON, default python3) with torch,
# triton, pybind11 and pytest; nothing is installed or downloaded. Each step has a log in DIRECTORY,
# a later step runs even where an earlier one failed, and summary.txt says how all of them ended.
# Where steps are named, these alone run, each with more time; `tune` and `profile` only then.
set -uo pipefail

out=$(mkdir -p "${1:?usage: benchmarks/gpu_check.sh DIRECTORY [STEP...]}" && cd "$1" && pwd)
wanted=" ${*:2} "
for name in "${@:2}"; do
  [[ " versions build tests agree memcheck racecheck kernels tune profile " == *" $name "* ]] ||
    { echo "there is no step $name" && exit 2; }
done
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
failed=0
: >"$out/summary.txt"

# step NAME SECONDS COMMAND...: at most that long, and never past the 510th second of all.
step() {
  local name=$1 limit=$2 rc started=$SECONDS
  shift 2
  [[ $wanted == "  " || $wanted == *" $name "* ]] || return
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
  "$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())
import triton; print("triton", triton.__version__)'
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

# What the hardware says of one correction and one step of each contestant.
profile() {
  ncu --kernel-name "regex:apply|observe" --launch-count 12 --section SpeedOfLight --section Occupancy \
    --section MemoryWorkloadAnalysis --section WarpStateStats \
    "$python" -m benchmarks.kernels --device cuda --quick --shapes "$1" --json "$2"
}

export python
export -f versions build sanitize profile
step versions 30 bash -c versions
step build 150 bash -c build
# Most of this time Triton compiles, for every dtype; later steps find that in its cache.
step tests 210 "$python" -m pytest tests/backends/test_gpu.py tests/backends/test_gpu_steps.py -o addopts="-ra --strict-markers" \
  --durations=10
step agree 60 "$python" -m benchmarks.gpu_small
step memcheck 60 bash -c 'sanitize memcheck'
step racecheck 60 bash -c 'sanitize racecheck'
# The table is written anew after every case: what a time limit cuts off is the end.
step kernels 510 "$python" -m benchmarks.kernels --device cuda --json "$out/kernels_cuda.json" \
  --shapes resnet50 ladder_{1M,4M,16M,64M,256M,1B} tiny_{53,300} vit_l convnext_l cspdarknet_l vit_g
if [[ $wanted != "  " ]]; then
  step tune 510 "$python" -m benchmarks.tune_triton --json "$out/tuning.json"
  step profile 120 bash -c "profile resnet50 '$out/profiled.json'"
fi

for log in tests:5 kernels:60 tune:10; do
  [[ -f $out/${log%:*}.log ]] && tail -n "${log#*:}" "$out/${log%:*}.log"
done >>"$out/summary.txt"
cat "$out/summary.txt"
exit $failed
