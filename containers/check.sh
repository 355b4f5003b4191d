#!/bin/bash
# Proves that an installation of hpcal works: labeler, dynamics, selection and training of one small
# campaign, in this process and in a folder of its own. Run by `%test` of the images, and by hand.
set -eu
folder=$(mktemp -d "${TMPDIR:-/tmp}/hpcal-check.XXXXXX")
trap 'rm -rf "$folder"' EXIT
cd "$folder"

hpcal --version

cat > water.yaml <<'YAML'
name: water
seed: 1
structures: {smiles: "O"}
label: {labeler: xtb}
potential: {kind: ani, members: 2, hidden: [8], epochs: 2, warm_epochs: 1}
bootstrap:
  - {sampler: random_displacement, count: 12, amplitude_A: 0.08}
sampling:
  - {sampler: langevin, walkers: 4, batch: 4, time_ps: 0.02, stride: 5, burn_in: 5}
uncertainty: {metric: force_std, threshold: 0.05}
selection: {batch: 4, audit_share: 0.2}
splits: {audit_walkers: 0.5}
stop: {generations: 2}
tasks: {sample_steps: 40}
YAML
printf '%s\n' 'kind: local' 'pools: {label: {}, sample: {}, train: {}}' > site.yaml

hpcal config check water.yaml
hpcal config check site.yaml
hpcal run water.yaml --inline
hpcal export water ensemble --ensemble
python3 - <<'PYTHON'
import torch
from ase.build import molecule
from hpcal.ase import EnsembleCalculator

water = molecule("H2O")
water.calc = EnsembleCalculator("ensemble")
energy = water.get_potential_energy()
assert energy < 0.0, f"an ensemble that knows no energy of water: {energy} eV"
print(f"check: passed; PyTorch {torch.__version__}, {torch.cuda.device_count()} GPUs seen")
PYTHON
