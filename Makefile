# make demo    one template from nothing to a sandbox, with real output
# make test    everything: format, lints, unit and end-to-end tests on real microVMs
# make test-client         its part with the published client
# make test-firecracker    its part on a real Firecracker, in a nested host (8 minutes)
# make bench-rebuild POST to ready when nothing, a step, or the base image has changed
# make bench-store   what templates of one base cost on the disk
# make bench-api   the API under 200 clients that poll and stream
# What each target installs is listed in scripts/packages.txt.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
export PATH

GUEST  := target/guest
TRIPLE := x86_64-unknown-linux-gnu

.PHONY: build guest base demo test test-firecracker test-client lint bench-api bench-rebuild bench-restore bench-import bench-store

setup-%:
	@scripts/setup.sh $(subst -, ,$*)

## target/release/nullspace and target/release/nullspace-init (static: it runs alone in the guest)
build: setup-build
	cargo build --release --locked -p nullspace
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked -p nullspace-init --target $(TRIPLE)
	install -m 755 target/$(TRIPLE)/release/nullspace-init target/release/nullspace-init

## kernel and initramfs that machines boot with
guest: build setup-guest
	scripts/guest-image.sh $(GUEST)

## the root tree of the built-in template `base`
base: setup-base
	scripts/base-image.sh $(GUEST)/base.tar

demo: setup-run guest base
	scripts/demo.sh

lint:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --workspace --no-deps --document-private-items --quiet

test: setup-run-base-test guest base lint test-firecracker test-client
	scripts/fetch-docker.sh
	NULLSPACE_TEST_COMPLETE=1 cargo nextest run --release --locked --workspace

## the published client's own tests, requests made from the OpenAPI document, and packages of the real mirrors, against the
## running service
test-client: setup-run-base-test guest base
	tests/sdk/published.py
	tests/sdk/contract_fuzz.py
	tests/sdk/packages.py

## the same drivers' and service's tests on a real Firecracker, in a nested host whose KVM works
test-firecracker: setup-run-test guest setup-base
	scripts/fetch-firecracker.sh
	tests/nested/firecracker.sh
	tests/nested/service.sh

## 200 clients poll and stream one build's log while 20 builds run
bench-api: setup-run-test guest
	cargo build --release --locked -p nullspace-client --example bench_api
	tests/sdk/bench_api.py

## POST -> ready when nothing, the last step, the first step, or the base image has changed
bench-rebuild: setup-run-test guest
	tests/sdk/bench_rebuild.py

## create -> first exec answered, against the same VMM driven by a bare script
bench-restore: setup-run-test guest base
	scripts/bench-restore.sh

## an image into an ext4 file, against skopeo + umoci + mke2fs and against decompressing and hashing alone (needs root)
bench-import: setup-build-base-test
	scripts/bench-import.sh

## 30 templates of one base, each with a megabyte more: room, time to write back, to restore, to collect (needs root)
bench-store: setup-run-base guest base
	scripts/bench-store.sh
