#!/bin/sh
# Compiles the service and the guest's PID 1.
#
#   target/PROFILE/nullspace        PROFILE: debug (default), release or dist
#   target/static/nullspace-init    static: it runs alone in the guest
#
# Only the last link of nullspace-init is static, so that its dependencies are compiled once for both.
#
# usage: build.sh [PROFILE]
set -eu
cd "$(dirname "$0")/.."
profile=${1:-dev}
cargo build --locked --profile "$profile" -p nullspace
cargo rustc --locked --profile "$profile" -p nullspace-init --bin nullspace-init -- -C target-feature=+crt-static
[ "$profile" = dev ] && folder=debug || folder=$profile
mkdir -p target/static
install -m 755 "target/$folder/nullspace-init" target/static/nullspace-init
