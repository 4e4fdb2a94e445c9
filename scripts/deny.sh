#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, duplicates, sources. cargo-deny is compiled once, under target/.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
deny=target/tools/bin/cargo-deny

[ "$("$deny" --version 2>/dev/null || true)" = "cargo-deny $version" ] ||
    cargo install cargo-deny --locked --quiet --version "$version" --root target/tools
"$deny" --locked check licenses bans sources
