#!/usr/bin/env bash
# Run a training script as one process per card: scripts/run_distributed.sh NPROC [launcher options] SCRIPT [options].
# PYTHON chooses the interpreter. See scripts/launch.py --help for several machines.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 NPROC [launcher options] SCRIPT [options]" >&2
  exit 2
fi
nproc=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python}" "$here/launch.py" --nproc_per_node "$nproc" "$@"
