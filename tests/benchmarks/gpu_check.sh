#!/usr/bin/env bash
# Everything that wants a GPU, in one go on a machine with one: training, nccl and exact continuation, a whole
# campaign whose dynamics and trainings run there, UDD forces beside the CPU, and what `hpcal site check` sees.
#
#   tests/benchmarks/gpu_check.sh [FOLDER]     FOLDER for the logs; about five minutes
#
# hpcal and its requirements must be importable by python3; RDKit is not needed.
set -uo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
out=$(mkdir -p "${1:-gpu-check}" && cd "${1:-gpu-check}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1

nvidia-smi -L
OMP_NUM_THREADS=8 timeout 150 python3 "$repository/tests/benchmarks/gpu_training.py" 2>&1 | tee "$out/training.log"

cd "$work"
python3 - "$repository" <<'PY'
import sys

import ase.io

repository = sys.argv[1]
reference = f"{repository}/workflows/data/glycine_500K.extxyz"
seeds = []
for frame in ase.io.read(reference, "::100"):
    frame.calc = None
    frame.info = {key: frame.info[key] for key in ("charge", "multiplicity")}
    frame.arrays = {key: frame.arrays[key] for key in ("numbers", "positions")}
    seeds.append(frame)
ase.io.write("seeds.extxyz", seeds)
text = open(f"{repository}/workflows/quickstart.yaml").read()
text = text.replace('{smiles: "NCC(=O)O"}', "{file: seeds.extxyz}")
open("campaign.yaml", "w").write(text.replace("data/glycine_500K.extxyz", reference))
PY
cat >site.yaml <<'YAML'
kind: local
pools:
  label:  {max_workers_per_node: 8}
  sample: {cores_per_worker: 2, available_accelerators: 1}
  train:  {cores_per_worker: 2, available_accelerators: 1}
YAML
timeout 240 python3 -m hpcal run campaign.yaml --site ./site.yaml --dir run 2>&1 | tee "$out/campaign.log" | tail -25
python3 -m hpcal status run --json >"$out/status.json"
timeout 90 python3 "$repository/tests/benchmarks/gpu_dynamics.py" run/ensemble/*.ani 2>&1 | tee "$out/dynamics.log"
timeout 100 python3 -m hpcal site check ./site.yaml 2>&1 | tee "$out/site.log"
