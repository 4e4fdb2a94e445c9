#!/usr/bin/env python3
"""The published client's own tests, unmodified, from its pinned source distribution.

First its offline tests of templates and commands, as a check of the pin; then every live test marked `template_build`, and
those of sandboxes, commands and files, against a running service with a Docker Engine beside it, which builds Dockerfiles and
runs the tests' own registries. What cannot pass yet is listed in not-yet.txt by name and reason. A listed test that passes fails
the run, so that the list only shrinks; so does one that fails and is not listed.

usage: published.py [TEST...]     published.py --fetch: only fetches and makes what the tests of this folder need
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import contract_fuzz
import images
from running import ROOT, TARGET, Docker, Memory, Registry, Service, venv

VERSION = "0.1.9"
SHA256 = "43b8bf3aec064108ea315c592646879a327cfbf70cf17f9ccb5304b2cef35b64"
FOLDER = TARGET / "client"
LIVE = "tests/test_firecracker_sdk_user_journeys.py"
# What else of the contract is served, beside templates.
SANDBOXES = [f"tests/test_integration.py::{name}"
             for name in ["TestSandboxLifecycle", "TestCommands", "TestFiles", "TestWebSocketStreaming", "TestBetaFixes",
                         "TestGit", "TestPtyWebSocket"]]
# Pauses, resumes, forks, timeouts and events. The soaks run with NULLSPACE_FIRECRACKER_SOAK=1, which `make test-long` sets.
SOAK = "NULLSPACE_FIRECRACKER_SOAK"
LIFE = ["tests/test_sandbox_integration.py", "tests/test_lifecycle_integration.py"]
# Terminals over the WebSocket.
TERMINALS = ["tests/test_pty_integration.py"]
# A sandbox from its creation to a page that it serves.
QUICKSTART = ["tests/test_quickstart_integration.py"]
# Large uploads in parts: all of them are soaks. `make test-long` sends two gigabytes.
UPLOADS = ["tests/test_firecracker_uploads_integration.py"]
UPLOAD_BYTES = "NULLSPACE_FIRECRACKER_SOAK_UPLOAD_BYTES"
# Files: paths, owners, batches, signed URLs and watched directories.
FILES = ["tests/test_firecracker_filesystem_parity.py"]
# Ours, through the client: what its own tests leave out.
COMMANDS = str(Path(__file__).with_name("live_commands.py"))
# `nullspace ssh`.
SSH = str(Path(__file__).with_name("live_ssh.py"))
# Warm pools.
POOLS = str(Path(__file__).with_name("live_warm_pools.py"))
OFFLINE = ["tests/test_template.py", "tests/test_template_builder_surface.py", "tests/test_commands.py",
           "tests/test_template_warm_pool.py"]
NOT_YET = Path(__file__).with_name("not-yet.txt")


def source():
    """The unpacked source distribution; its digest is checked every time."""
    name = f"nullspace_sdk-{VERSION}"
    archive = FOLDER / f"{name}.tar.gz"
    if not archive.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:",
             "--dest", FOLDER, f"nullspace-sdk=={VERSION}"],
            check=True,
        )
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{archive} is not the pinned source distribution")
    with tarfile.open(archive) as tar:
        tar.extractall(FOLDER, filter="data")
    return FOLDER / name


def outcomes(report):
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname').rsplit('.', 1)[-1]}::{case.get('name')}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        # A teardown that fails is a case of its own with the same name.
        found[name] = outcome if found.get(name, "passed") == "passed" else found[name]
    return found


def client_venv(client):
    """The Python that has the client and what its tests need."""
    return venv("client/venv", str(client), "pytest==9.0.2", "pytest-asyncio==1.3.0", "pytest-httpx==0.36.0",
                "pytest-timeout==2.4.0", "zstandard>=0.23", "mcp[cli]>=1,<2")


def main():
    client = source()
    python = client_venv(client)
    if sys.argv[1:] == ["--fetch"]:
        images.make_all()
        contract_fuzz.python()
        return 0
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    # Proxies and settings of this host are not for loopback.
    env = {k: v for k, v in os.environ.items() if not k.startswith("NULLSPACE_") and not k.lower().endswith("_proxy")}
    subprocess.run([*pytest, *OFFLINE], cwd=client, env=env, check=True)

    not_yet = {}
    for line in NOT_YET.read_text().splitlines():
        found = re.match(r"(\S.*?)  +(\S.*)", line)
        if found and not line.startswith("#"):
            not_yet[found[1]] = found[2]
    seen = {}
    only = sys.argv[1:]
    with Registry() as hub:
        images.push_all(hub)
        with Docker(hub) as docker, Service(hub, buildkit=f"docker://{docker.socket}", ssh_listen="127.0.0.1:0") as service:
            live = {
                **env,
                "NULLSPACE_INTEGRATION": "1",
                "NULLSPACE_API_URL": service.url,
                "NULLSPACE_API_KEY": service.key("first"),
                "NULLSPACE_SECONDARY_API_KEY": service.key("second"),
                "NULLSPACE_TEST_TIMEOUT_HIBERNATE": "1",
                **docker.env(),
            }
            soak = os.environ.get(SOAK) == "1"
            if soak:
                live[SOAK] = "1"
            groups = {
                "templates": ["-m", "template_build", LIVE],
                "sandboxes": SANDBOXES,
                "life": LIFE if soak else ["-m", "not slow", *LIFE],
                "quickstart": QUICKSTART,
                "terminals": TERMINALS,
                "commands": [COMMANDS],
                "ssh": [SSH],
                "pools": [POOLS],
                "files": FILES,
                "uploads": UPLOADS,
            }
            uploads = {SOAK: "1", UPLOAD_BYTES: os.environ.get(UPLOAD_BYTES, str((2 << 30) if soak else 200 << 20))}
            for name, tests in groups.items():
                # Builds do not need the built-in template. In a whole run it is there when they are over.
                if name == "sandboxes":
                    service.wait_for_base(live["NULLSPACE_API_KEY"])
                report = FOLDER / f"{name}.xml"
                report.unlink(missing_ok=True)
                with Memory(service.process.pid) as memory:
                    subprocess.run([*pytest, "--timeout=1500", f"--junitxml={report}", "--tb=line", *tests, *only],
                                   cwd=client, env={**live, **(uploads if name == "uploads" else {})}, check=False)
                if name == "uploads":
                    print(f"client: the service's memory had {memory.most >> 20} MiB at most while it took uploads")
                # With a choice of tests, none may be left of a file.
                if report.exists():
                    seen |= outcomes(report)
            faults = [line for line in service.lines if " ERROR " in line or "panicked" in line]
    passed = {name for name, outcome in seen.items() if outcome == "passed"}
    wrong = [f"{name} passes: take it off {NOT_YET.relative_to(ROOT)}" for name in sorted(passed & set(not_yet))]
    wrong += [f"{name} {outcome}, and is not in {NOT_YET.relative_to(ROOT)}"
              for name, outcome in sorted(seen.items()) if outcome != "passed" and name not in not_yet]
    if not only:
        wrong += [f"{name} is in {NOT_YET.relative_to(ROOT)} and is no test" for name in sorted(set(not_yet) - set(seen))]
    wrong += [f"the service logged: {line}" for line in faults]
    print(f"part: tests={len(passed) + len(wrong)} failed={len(wrong)} skipped={len(not_yet)}")
    print(f"client: {len(passed)} of {len(seen)} live tests pass, {len(not_yet)} are not yet expected to")
    for line in wrong:
        print("client: " + line, file=sys.stderr)
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
