# make demo    one template from nothing to a sandbox, and one from a Dockerfile, with real output
# make test    format, unit and end-to-end tests on real microVMs
# make test-client         its part with the published client
# make test-firecracker    its part on a real Firecracker, in a nested host
# make lint                format, clippy and rustdoc
# make deny      licences, duplicates and sources of the dependencies
# make test-long           soaks, attacks, and the end-to-end tests on an S3 store: hours
# make fuzz                fuzz targets, an hour each unless NULLSPACE_FUZZ_SECONDS says otherwise
# make dist                the optimised, stripped binary: target/dist/nullspace
# make bench-rebuild POST to ready when nothing, a step, or the base image has changed
# make bench-store   what templates of one base cost on the disk, and cold starts, also from an S3 store
# make bench-life  pauses, resumes and forks of sandboxes
# make bench-ports requests to a port of a sandbox, against socat before the same server
# make bench-api   the API under 200 clients that poll and stream
# What each target installs is listed in scripts/packages.txt; what its parts are, in scripts/parts.py.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
export PATH

GUEST := target/guest
# What tests/sdk starts in benchmarks: the optimised program.
OPTIMISED := NULLSPACE_PROGRAM=target/release/nullspace

.PHONY: build release dist guest base builder demo deny test test-long test-attack test-firecracker test-client lint fuzz \
	bench-api bench-rebuild bench-restore bench-import bench-store bench-life bench-ports

setup-%:
	@scripts/setup.sh $(subst -, ,$*)

## target/debug/nullspace and target/static/nullspace-init
build: setup-build
	scripts/build.sh

## the same, optimised: what the benchmarks measure
release: setup-build
	scripts/build.sh release

## target/dist/nullspace, optimised and stripped: what is installed
dist: setup-build
	scripts/build.sh dist

## kernel and initramfs that machines boot with
guest: setup-build-guest
	scripts/parts.py --stream guest

## the root tree of the built-in template `base`
base: setup-base
	scripts/root-image.sh base $(GUEST)/base.tar

## the root tree of builder machines, which build Dockerfiles
builder: setup-base
	scripts/root-image.sh builder $(GUEST)/builder.tar

demo: setup-build-run-guest-base
	scripts/parts.py --stream demo
	scripts/demo.sh

lint: setup-build-run-guest-base-test
	scripts/parts.py lint

test: setup-build-run-guest-base-test
	scripts/parts.py test

## the dependencies against deny.toml
deny: setup-build
	scripts/deny.sh

## the published client's own tests, requests made from the OpenAPI document, and packages of the real mirrors, against the
## running service
test-client: setup-build-run-guest-base-test
	scripts/parts.py test-client

## the same drivers' and service's tests on a real Firecracker, in a nested host whose KVM works
test-firecracker: setup-build-run-guest-base-test
	scripts/parts.py test-firecracker

## attacks: kills, full disks, floods, hostile guests and registries, revoked keys; figures at its end
test-attack: setup-build-run-guest-base-test
	scripts/parts.py guest base
	tests/attack/all.sh

## what takes too long for `make test`: attacks, soaks on a real Firecracker, and the end-to-end tests on an S3 store
test-long: setup-build-run-guest-base-test
	$(MAKE) deny
	NULLSPACE_FUZZ_SECONDS=30 scripts/parts.py fuzz
	scripts/parts.py doc soak firecracker-long s3 packages-long client-soak files-soak
	$(MAKE) test-attack

## hostile bytes for every parser that reads some, two targets at a time
fuzz: setup-build-test
	CARGO_PROFILE_RELEASE_OPT_LEVEL=3 NULLSPACE_FUZZ_SECONDS=$${NULLSPACE_FUZZ_SECONDS:-3600} NULLSPACE_FUZZ_JOBS=2 scripts/fuzz.sh

## 200 clients poll and stream one build's log while 20 builds run
bench-api: setup-build-run-guest-test release guest
	cargo build --release --locked -p nullspace-client --example bench_api
	$(OPTIMISED) tests/sdk/bench_api.py

## POST -> ready when nothing, the last step, the first step, or the base image has changed
bench-rebuild: setup-build-run-guest-test release guest
	$(OPTIMISED) tests/sdk/bench_rebuild.py

## create -> first exec answered, against the same VMM driven by a bare script
bench-restore: setup-build-run-guest-base-test release guest base
	scripts/bench-restore.sh

## an image into an ext4 file, against skopeo + umoci + mke2fs and against decompressing and hashing alone (needs root)
bench-import: setup-build-base-test
	scripts/bench-import.sh

## 30 templates of one base, each with a megabyte more: room, time to write back, to restore, to collect; cold restores from an
## S3 store (needs root)
bench-store: setup-build-run-guest-base-test release guest base
	scripts/bench-store.sh

## pause, resume and fork with little and much dirtied memory, as a client sees them
bench-life: setup-build-run-guest-test release guest
	$(OPTIMISED) tests/sdk/bench_life.py

## requests to a port of a sandbox, against socat before the same server; memory of 200 open streams
bench-ports: setup-build-run-guest-base-test release guest base
	$(OPTIMISED) tests/sdk/bench_ports.py
