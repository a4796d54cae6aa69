#!/usr/bin/env bash
# What a graphics card is asked once: a quarter of an hour, in parts that each finish, print and leave rows.
#   benchmarks/gpu/quarter_hour.sh [OUT]              on a machine with a card
#   benchmarks/gpu/quarter_hour.sh --rehearse [OUT]   every part at small size on a CPU
# PYTHON names the interpreter; Ray is not needed. A part that fails does not stop the next.
set -uo pipefail
cd "$(dirname "$0")/../.."
REHEARSE=
if [ "${1:-}" = --rehearse ]; then REHEARSE=1; shift; fi
OUT=${1:-gpu-rows}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$OUT"
FAILED=0

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS; shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || FAILED=1
  echo "== $name: exit code $code after $((SECONDS - began)) s"
}

if [ -n "$REHEARSE" ]; then
  MODEL=engine/weights/tiny
  part tests 120 "$PYTHON" -m pytest -q tests/engine/test_precision.py
  part kernels 120 "$PYTHON" -c "import recapture.benchmarks.latent_mask as b; print(b.rows('cpu', True))"
  part steps 120 "$PYTHON" -m recapture.benchmarks.steps "$MODEL" --height 64 --width 64 --out "$OUT/steps.jsonl"
else
  MODEL=$OUT/svd
  # Triton against numba to the bit is among the tests marked gpu.
  part tests 180 "$PYTHON" -m pytest -q -m gpu tests/kernels tests/engine
  part kernels 150 "$PYTHON" -m recapture bench kernels --device cuda --quick --out "$OUT/kernels.jsonl"
  part weights 120 "$PYTHON" -c "
from pathlib import Path
from recapture.engine.models.stable_video import write_random
write_random('svd', Path('$MODEL'))"
  part steps 240 "$PYTHON" -m recapture.benchmarks.steps "$MODEL" --device cuda --out "$OUT/steps.jsonl"
  part steps-fp32 120 "$PYTHON" -m recapture.benchmarks.steps "$MODEL" --device cuda --dtype fp32 \
    --height 256 --width 384 --out "$OUT/steps.jsonl"
  part end-to-end 180 "$PYTHON" -m recapture bench full-size --model "$MODEL" --device cuda \
    --height 576 --width 1024 --out "$OUT/full_size.jsonl"
fi
exit $FAILED
