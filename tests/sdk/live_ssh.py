"""`nullspace ssh` of the published client, with OpenSSH, into a running sandbox.

Run by published.py, which sets the client's environment. The service listens for SSH.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from nullspace import Sandbox

BASE_URL = os.environ["NULLSPACE_API_URL"]
API_KEY = os.environ["NULLSPACE_API_KEY"]
# What a session may take on a busy machine whose guests are emulated.
PATIENCE = 120
PROGRAM = Path(sys.executable).with_name("nullspace")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox.create(api_key=API_KEY, base_url=BASE_URL) as made:
        yield made


@pytest.fixture
def env(tmp_path):
    """The client keeps its keys in the home folder, and no agent offers others."""
    kept = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    return {**kept, "HOME": str(tmp_path)}


def run(command, env, **more):
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, **more)


def client(env, *words, **more):
    return run([PROGRAM, *words], env, **more)


def test_a_command_has_its_streams_and_its_status(sandbox, env):
    ran = client(env, "ssh", sandbox.id, "--", "id -u; cat; echo fault >&2; exit 7", input="given")
    assert (ran.returncode, ran.stdout) == (7, "0\ngiven"), ran.stderr
    assert ran.stderr.endswith("fault\n")


def test_the_user_is_chosen_when_access_is_made(sandbox, env):
    ran = client(env, "ssh", "--user", "user", "--ttl", "10m", sandbox.id, "--", "id -un; pwd")
    assert ran.returncode == 0 and ran.stdout.startswith("user\n"), (ran.stdout, ran.stderr)
    ran = client(env, "ssh", "--user", "nobody-of-that-name", sandbox.id, "--", "true")
    assert ran.returncode != 0


def test_a_key_of_the_caller_is_certified_and_its_command_opens_a_terminal(sandbox, env, tmp_path):
    key = tmp_path / "mine"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    shown = client(env, "sandbox", "ssh-access", "--identity-file", str(key), sandbox.id)
    assert shown.returncode == 0, shown.stderr
    command = shlex.split(shown.stdout)
    assert command[command.index("-i") + 1] == str(key)
    ran = run([*command, "-tt"], env, input="tty; stty size; exit 3\n")
    assert ran.returncode == 3 and "/dev/pts/" in ran.stdout, (ran.stdout, ran.stderr)


def test_a_port_is_forwarded(sandbox, env):
    page = ["sh", "-c", "mkdir -p /tmp/page && echo a page > /tmp/page/index.html && cd /tmp/page && exec python3 -m http.server 8123"]
    server = sandbox.commands.run(page[0], page[1:], background=True)
    try:
        ready = "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8123))' 2>/dev/null; do sleep 0.2; done"
        sandbox.commands.run(ready, shell=True, timeout=60)
        command = shlex.split(client(env, "ssh", "--print-command", sandbox.id).stdout)
        ran = run([*command[:-1], "-W", "localhost:8123", command[-1]], env, input="GET / HTTP/1.0\r\n\r\n")
        assert ran.stdout.startswith("HTTP/1.0 200") and "a page" in ran.stdout, (ran.stdout, ran.stderr)
    finally:
        server.kill()


def test_access_is_pinned_to_its_sandbox_and_to_the_key_of_the_server(sandbox, env):
    made = json.loads(client(env, "ssh", "--json", sandbox.id).stdout)
    assert made["user"] == sandbox.id and made["host_key"].startswith("ssh-ed25519 ")
    command = shlex.split(made["command"])
    with Sandbox.create(api_key=API_KEY, base_url=BASE_URL) as other:
        ran = run([*command[:-1], f"{other.id}@{made['host']}", "true"], env)
        assert ran.returncode == 255 and "Permission denied" in ran.stderr, ran.stderr
    Path(made["known_hosts_file"]).write_text(f"[{made['host']}]:{made['port']} ssh-ed25519 {'A' * 68}\n")
    ran = run([*command, "true"], env)
    assert ran.returncode == 255 and "Host key verification failed" in ran.stderr, ran.stderr
