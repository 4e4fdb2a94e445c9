#!/usr/bin/env python3
"""schemathesis against a running service: requests made from our OpenAPI document, all checks.

No 5xx, no status that the document does not name, no answer that its schema does not allow, nothing let in without a key.
One check is left out: that whatever the schema allows is accepted. A schema cannot say that `dockerfile` excludes `steps`,
or that a Dockerfile parses, so 400 is right for much that it allows.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from running import GUEST, ROOT, Service, venv

DOCUMENT = ROOT / "contract" / "nullspace-openapi.json"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "120"))


def python():
    """The Python that has schemathesis."""
    return venv("schemathesis", "schemathesis==4.32.5")


def main():
    document = json.loads(DOCUMENT.read_text())
    with tempfile.TemporaryDirectory() as folder:
        return against(python(), document, Path(folder))


def against(interpreter, document, folder):
    # Without the base template nothing boots, and with a proxy that is not there no made-up image is looked for outside.
    guest = folder / "guest"
    guest.mkdir()
    for name in ["vmlinuz", "initramfs.cpio"]:
        (guest / name).symlink_to(GUEST / name)
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    with Service(guest_dir=guest, requests_per_second=100000, env=nowhere) as service:
        key = service.key("fuzz")
        path = folder / "openapi.json"
        path.write_text(json.dumps(document))
        settings = folder / "schemathesis.toml"
        # 501 says what this version does not build: documented, and no fault.
        settings.write_text('[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 501]\n')
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(
            [interpreter.parent / "st", "--config-file", settings, "run", path, "--url", service.url,
             "--header", f"Authorization: Bearer {key}", "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing",
             # The contract calls a form raw bytes here, and schemathesis fails at its own work on it.
             "--exclude-operation-id", "upload_file_multipart",
             "--max-examples", "30", "--max-time", str(SECONDS), "--request-timeout", "30", "--continue-on-failure",
             "--generation-deterministic", "--no-color"],
            cwd=folder, env=env, check=False,
        )
        faults = [line for line in service.lines if " ERROR " in line or "panicked" in line]
        for line in faults:
            print("fuzz: the service logged: " + line, file=sys.stderr)
    return 1 if faults else done.returncode


if __name__ == "__main__":
    sys.exit(main())
