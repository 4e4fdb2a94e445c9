#!/usr/bin/env bash
# One template from nothing to a sandbox, and one from a Dockerfile, against a service started here: the README's tour. `make demo`
# prepares what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=target/debug/nullspace
data=target/demo
name=demo-web
site=demo-site
files=target/demo-files
export NULLSPACE_API_URL=http://127.0.0.1:3000
# Enough for the demo's Dockerfile, also on a small host.
export NULLSPACE_BUILDER_MEMORY_MIB=${NULLSPACE_BUILDER_MEMORY_MIB:-1024}

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

server=
stop() {
    status=$?
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    [ "$status" = 0 ] || { echo; echo "demo failed; the service's log ends with:"; tail -n 20 "$data/service.log"; }
    exit "$status"
}
trap stop EXIT

say "Starting the service on 127.0.0.1:3000 (SQLite and files under $data)"
mkdir -p "$data"
$bin serve --data-dir "$data" --listen 127.0.0.1:3000 2> "$data/service.log" &
server=$!
for _ in $(seq 300); do
    if ! kill -0 "$server" 2>/dev/null; then exit 1; fi
    grep -q 'listening on' "$data/service.log" && break
    sleep 0.2
done
NULLSPACE_API_KEY=$($bin keys create --tenant demo --label demo --data-dir "$data" 2>/dev/null)
export NULLSPACE_API_KEY

say "Built-in template nullspace/base (built once from Debian packages)"
$bin template wait nullspace/base --timeout-secs 600

say "Building $name: python3 -m http.server as start command, ready when its TCP port opens"
$bin template build --name "$name" --from nullspace/base:latest --ready tcp:8000 --start-cmd '
    cd /workspace
    echo $(( $(cat starts 2>/dev/null || echo 0) + 1 )) > starts
    echo $$ > pid
    echo "web server starts, pid $$, start counter $(cat starts)"
    exec python3 -m http.server 8000'

say "Creating a sandbox from it: the snapshot of the running machine is resumed"
sandbox=$($bin sandbox create "$name" --timings)

say "First exec"
$bin sandbox exec "$sandbox" --timings -- cat /etc/hostname /etc/machine-id

say "The web server's process is the one that ran at build"
$bin sandbox exec "$sandbox" -- sh -c '
    pid=$(cat /workspace/pid)
    echo "pid at build:    $pid"
    echo "pid $pid now:      $(tr "\0" " " < /proc/$pid/cmdline)"
    echo "start counter:   $(curl -fsS http://127.0.0.1:8000/starts)   (asked of the web server)"
    [ "$(tr "\0" " " < /proc/$pid/cmdline)" = "python3 -m http.server 8000 " ] && [ "$(cat /workspace/starts)" = 1 ]'

say "Building $site from a Dockerfile of two stages, in a builder machine: no Docker is needed"
$bin template build --name "$site" --context "$files" --memory-mib 256 --ready tcp:8080

say "A sandbox from it serves what the RUN step has made"
other=$($bin sandbox create "$site" --timings)
$bin sandbox exec "$other" -- wget -qO- http://127.0.0.1:8080/

say "Cleaning up"
$bin sandbox delete "$sandbox"
$bin sandbox delete "$other"
$bin template delete "$name"
$bin template delete "$site"
echo "done"
