#!/usr/bin/env bash
# Every attack of this folder against a service of its own, one after another; figures and a line `tried N survived M` each.
# One that fails does not keep the others from running.
#
# usage: tests/attack/all.sh [ATTACK...]      names of files here without .py; default: all
# needs: make guest base; root
set -uo pipefail
cd "$(dirname "$0")"
export PYTHONPATH=../sdk

[[ $# -gt 0 ]] || set -- $(ls -- *.py | sed 's/\.py$//')
failed=()
for attack in "$@"; do
  echo "== $attack"
  python3 "$attack.py" || failed+=("$attack")
done
echo "attacks: $# run, ${#failed[@]} failed ${failed[*]}"
[[ ${#failed[@]} = 0 ]]
