#!/bin/bash
# Runs in the nested host: see run.sh. SUITES are names of files beside this one.
set -euo pipefail
modprobe -a dm_mod dm_snapshot loop
# Unpacked here, and not within the ten seconds that the service grants its first nft.
modprobe -a nf_tables nft_chain_nat nft_ct nft_masq nft_fib_inet nft_reject_inet nft_limit veth || true
nft list ruleset
. /in/tested.sh

for suite in $SUITES; do
  # shellcheck source=/dev/null
  . "/in/$suite.sh"
done

nothing_left processes "$(pgrep -x firecracker || true)"
nothing_left "control groups" "$(ls -d /sys/fs/cgroup/nullspace-* 2>/dev/null || true)"
nothing_left mappings "$(dmsetup ls | grep nullspace || true)"
nothing_left "loop devices" "$(losetup -a)"
nothing_left interfaces "$(ip -br link | grep -E '^(nsv|tap)' || true)"
nothing_left "nftables rules" "$(nft list ruleset)"
exit "$failed"
