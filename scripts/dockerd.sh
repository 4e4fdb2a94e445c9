#!/usr/bin/env bash
# Runs a Docker Engine of one's own for tests: private socket, state and containerd, and nothing of it left afterwards.
# It runs in the foreground until SIGTERM, SIGINT, or the end of the process that started it.
#
# usage: scripts/dockerd.sh DIR [dockerd options…]      needs: root, iproute2, scripts/fetch-docker.sh run before
#
#   DIR/docker.sock   its API, once it serves
#   DIR/data          images, build cache          DIR/run   state of dockerd, containerd and containers
#   DIR/log           what dockerd says
#
# Firewall and forwarding of this machine are not touched: containers reach this machine through a bridge of their own
# (named after the process, 10.213.N.0/24) and nothing beyond it. Images that are not here come from registries on
# loopback, or from a mirror: --registry-mirror=http://127.0.0.1:PORT.
set -euo pipefail

[[ $# -ge 1 ]] || { echo "usage: $0 DIR [dockerd options…]" >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo "dockerd.sh: a Docker Engine needs root" >&2; exit 1; }
here=$(cd "$(dirname "$0")/.." && pwd)
tools=${NULLSPACE_TEST_DOCKER:-$here/target/docker}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
export PATH="$tools/usr/sbin:$tools/usr/bin:$PATH:/usr/sbin:/sbin"

bridge=nsd$$
parent=$PPID
engine=

end() {
  trap '' TERM INT HUP
  if [[ -n $engine ]] && kill -TERM "$engine" 2>/dev/null; then
    for _ in $(seq 100); do
      kill -0 "$engine" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
  fi
  # Steps of a build that runs outlive the engine; one that was killed leaves its containerd and mounts too.
  local round pids pid
  for round in TERM KILL KILL; do
    pids=$(find /sys/fs/cgroup -path "*/$bridge/*" -name cgroup.procs -exec cat {} + 2>/dev/null || true)
    for pid in /proc/[0-9]*; do
      pid=${pid#/proc/}
      [[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
      if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -e "$dir/run/" -e "$dir/data/"; then
        pids+=" $pid"
      fi
    done
    [[ -n ${pids// /} ]] || break
    # shellcheck disable=SC2086  # a list of numbers
    kill "-$round" $pids 2>/dev/null || true
    sleep 0.3
  done
  awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
    umount -l "$mount" 2>/dev/null || true
  done
  # Ports of containers that went with the engine, not before it.
  ip -o link show master "$bridge" 2>/dev/null | sed -E 's/^[0-9]+: ([^:@]+).*/\1/' | while read -r port; do
    ip link delete "$port" 2>/dev/null || true
  done
  ip link delete "$bridge" 2>/dev/null || true
  local group
  for group in /sys/fs/cgroup/*/"$bridge" /sys/fs/cgroup/"$bridge"; do
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
  rm -rf "$dir/run" "$dir/data" "$dir/docker.sock"
}
trap end EXIT
trap 'exit 0' TERM INT HUP

for number in $(seq 0 255); do
  subnet=10.213.$(((number + $$) % 256))
  [[ -n $(ip -4 -o address show to "$subnet.0/24") ]] || break
done
ip link add "$bridge" type bridge
ip address add "$subnet.1/24" dev "$bridge"
ip link set "$bridge" up

mkdir -p "$dir/run" "$dir/data"
# No plugin and no configuration of this machine's own engine takes part.
echo '{}' >"$dir/run/daemon.json"
DOCKER_CONFIG=$dir/run dockerd \
  --config-file "$dir/run/daemon.json" --host "unix://$dir/docker.sock" --group root \
  --data-root "$dir/data" --exec-root "$dir/run" --pidfile "$dir/run/dockerd.pid" \
  --bridge "$bridge" --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false \
  --cgroup-parent "/$bridge" --shutdown-timeout 5 "$@" >"$dir/log" 2>&1 &
engine=$!

# Bound to whoever started it: a test that is killed leaves no engine.
while kill -0 "$engine" 2>/dev/null; do
  [[ $(ps -o ppid= -p $$ | tr -d ' ') == "$parent" ]] || exit 0
  sleep 0.5 &
  wait $! || true
done
engine=
echo "dockerd.sh: dockerd ended by itself:" >&2
tail -n 20 "$dir/log" >&2
exit 1
