#!/usr/bin/env python3
"""Packages of the real mirrors, installed by steps inside machines: Debian's by apt_install, PyPI's by pip_install, npm's by
npm_install and bun_install. TLS to them is checked against this machine's own CA bundle, which is the service's extra CA file:
a company's proxy that signs with a CA of its own is met the same way.

With NULLSPACE_TEST_LONG set (`make test-long`) npm_install and bun_install are among them, and the files are compared of all cases;
else of apt_install alone, since an emulated machine reads a whole image for it.

    steps ── build ── sandbox ── its files ─────────────┐
      └─ plan ── Dockerfile ── docker build ── its files ─┴─ equal: names, kinds, modes, owners, contents, links
                   (beside the machine)
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
from running import Docker, Registry, Service

# Limit of a command in a sandbox. The service's default (30 s) is short for an emulated guest on a busy host.
PATIENCE_SECS = 300
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Image, steps, and a command whose output shows that what was installed works.
CASES = {
    "apt": ("debian:stable-slim", [{"action": "apt_install", "packages": ["hello"]}], "hello --greeting=installed", "installed"),
    "pip": ("python:3", [{"action": "pip_install", "packages": ["six==1.17.0"]}], "python3 -c 'import six; print(six.__version__)'", "1.17.0"),
    # In a folder and for the whole machine.
    "npm": (
        "node:20",
        [
            {"action": "workdir", "path": "/srv/app"},
            {"action": "npm_install", "packages": ["is-number@7.0.0"]},
            {"action": "npm_install", "packages": ["semver@7.7.2"], "g": True},
        ],
        "node -p 'require(\"is-number\")(42)' && semver 1.2.3 -r ^1.0.0",
        "true\n1.2.3",
    ),
    "bun": (
        "oven/bun:1.2.0",
        [{"action": "workdir", "path": "/srv/app"}, {"action": "bun_install", "packages": ["is-number@7.0.0"]}],
        "bun -p 'require(\"is-number\")(42)'",
        "true",
    ),
}

LONG = bool(os.environ.get("NULLSPACE_TEST_LONG"))
COMPARED = set(CASES) if LONG else {"apt"}
if not LONG:
    del CASES["npm"], CASES["bun"]

# What is told to programs in `docker build` as the service tells it to those in machines: the bundle, and that nobody answers.
TOLD = {
    **{name: "/ca.crt" for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS")},
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "DEBIAN_FRONTEND": "noninteractive",
}
# Every file's kind, mode, owner and link; and every content. Not those that differ by nature: caches, logs, what is compiled
# with its source's time in it, and what a container or machine is given when it starts. MD5: an emulated processor computes it
# faster than SHA-256, and nobody here makes files with equal sums.
LEFT_OUT = [
    "/proc", "/sys", "/dev", "/tmp", "/run", "/ca.crt", "/.dockerenv", "/files", "/var/cache", "/var/log", "/var/lib/apt/lists",
    "/root/.npm", "/root/.bun", "/root/.cache", "/etc/ld.so.cache", "/etc/machine-id", "/etc/hosts", "/etc/hostname",
    "/etc/resolv.conf", "/etc/mtab", "/lost+found",
]
PRUNED = " -o ".join(f"-path {path}" for path in LEFT_OUT)
FILES = f"""find / \\( {PRUNED} -o -name __pycache__ \\) -prune -o -printf '%p\\t%y %m %U:%G %l\\n' >/files
find / \\( {PRUNED} -o -name __pycache__ \\) -prune -o -type f -print0 | xargs -0 md5sum | sed -E 's/^(\\S+)  (.*)/\\2\\t\\1/' >>/files"""


def files(text):
    """What is known of each path, from the script's output."""
    found = {}
    for line in text.splitlines():
        path, _, what = line.partition("\t")
        found[path] = f"{found.get(path, '')} {what}".strip()
    return found


def dockers(docker, service, key, image, steps):
    """The files of `docker build` of the steps' Dockerfile."""
    status, plan = service.request(key, "POST", "/v1/templates/plan", {"base_image": image, "steps": steps})
    assert status == 200, plan
    lines = [f"FROM {image}-trusting", "WORKDIR /workspace", *(f"ARG {name}={value}" for name, value in TOLD.items())]
    lines += [f"{step['instruction']} {step['arguments']}" for step in plan["build_plan"]["build_steps"]]
    env = {**os.environ, **docker.env(), "DOCKER_BUILDKIT": "1"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text("\n".join(lines) + "\n")
        command = ["docker", "build", "--quiet", "--network=host", "-t", "theirs", folder]
        # Once more for a mirror that did not answer.
        if subprocess.run(command, env=env, stdout=subprocess.DEVNULL).returncode != 0:
            subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    shown = ["docker", "run", "--rm", "--network=none", "--user=0", "theirs", "sh", "-c", f"{FILES}\ncat /files"]
    return files(subprocess.run(shown, check=True, env=env, capture_output=True, text=True).stdout)


def ours(service, key, sandbox):
    """The files of a sandbox."""
    run = {"command": FILES, "shell": True, "user": "root", "timeout_secs": PATIENCE_SECS}
    status, done = service.request(key, "POST", f"/v1/sandboxes/{sandbox}/exec", run)
    assert status == 200 and done["exit_code"] == 0, done
    url = f"{service.url}/v1/sandboxes/{sandbox}/file?" + urllib.parse.urlencode({"path": "/files", "user": "root"})
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECS) as answer:
        return files(answer.read().decode())


def build(service, key, name, image, steps, **more):
    """The finished build and its log."""
    request = {"name": name, "base_image": image, "steps": steps, "build_config": {"memory_mib": 1024, **more}}
    status, answer = service.request(key, "POST", "/v1/templates/builds", request)
    assert status == 202, answer
    path = f"/v1/templates/builds/{answer['build_id']}?offset=0"
    deadline = time.monotonic() + 600
    while True:
        _, answer = service.request(key, "GET", path)
        if answer["build"]["status"] in ("ready", "error", "cancelled"):
            return answer["build"], "\n".join(entry["message"] for entry in answer["entries"])
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)


def main():
    wrong = []
    with Registry() as hub:
        images.push_for_packages(hub, Path(BUNDLE).read_bytes())
        # What Docker makes of a case is made while machines make the same: either waits for mirrors most of the time.
        with Docker(hub) as docker, Service(hub, extra_ca_file=BUNDLE) as service, ThreadPoolExecutor(1) as beside:
            key = service.key("first")
            for name, (image, steps, command, expected) in CASES.items():
                began = time.monotonic()
                with_docker = name in COMPARED and beside.submit(dockers, docker, service, key, image, steps)
                built, log = build(service, key, name, image, steps)
                if built["status"] != "ready":
                    # The mirrors are not ours: what they fail to do once says nothing, twice does.
                    print(f"packages: {name}: once more, after: {built['error']}\n{log}", flush=True)
                    built, log = build(service, key, name, image, steps)
                took = time.monotonic() - began
                if built["status"] != "ready":
                    wrong.append(f"{name}: {built['error']}\n{log}")
                    continue
                status, sandbox = service.request(key, "POST", "/v1/sandboxes", {"template": name})
                assert status == 201, sandbox
                run = {"command": command, "shell": True, "timeout_secs": PATIENCE_SECS}
                status, done = service.request(key, "POST", f"/v1/sandboxes/{sandbox['id']}/exec", run)
                if status != 200 or done["stdout"].strip() != expected:
                    wrong.append(f"{name}: {command}: {done}")
                mine = {}
                if with_docker:
                    mine, theirs = ours(service, key, sandbox["id"]), with_docker.result()
                    differ = sorted(path for path in mine.keys() | theirs.keys() if mine.get(path) != theirs.get(path))
                    wrong += [f"{name}: {path}: here {mine.get(path)}, docker {theirs.get(path)}" for path in differ]
                service.request(key, "DELETE", f"/v1/sandboxes/{sandbox['id']}")
                whole = time.monotonic() - began
                print(f"packages: {name}: installed in {took:.1f} s, used, {len(mine)} paths compared, {whole:.1f} s in all", flush=True)
            # Without internet access none of it is to be had, and the step says what failed.
            image, steps, *_ = CASES["apt"]
            built, log = build(service, key, "closed", image, steps, internet_access=False)
            if built["status"] != "error" or built["error_detail"]["phase"] != "build_step":
                wrong.append(f"apt_install without internet access: {built['status']}\n{log}")
    for line in wrong:
        print("packages: " + line, file=sys.stderr)
    print(f"part: tests={len(CASES) + 1} failed={len(wrong)}")
    print(f"packages: {len(CASES)} installs, {len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
