//! Git in a machine, with a real server of git over HTTP that asks for a password.

use std::time::Duration;

use nullspace_api::{
    GitBranchList, GitCloneResponse, GitCommitResponse, GitLogResponse200, GitOkResponse, GitStatus, GitSyncResponse,
};
use serde_json::{Value, json};

use crate::fixture::{Service, debian, until};

const PASSWORD: &str = "canary-git-pass word";

/// Serves repositories under /srv to those with the password, which it knows by its hash alone. It is slow to let in, so that there is
/// time to look at what runs. `/away/…` leads to the same server under another name.
const SERVER: &str = r#"
import hashlib, http.server, os, subprocess, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = b""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, _, query = self.path.partition("?")
        shown = self.headers.get("authorization")
        if shown:
            with open("/run/shown", "a") as log: log.write(self.headers["host"] + "\n")
        if path.startswith("/away/"):
            return self.send(302, [("location", "http://localhost:8000" + self.path[5:])], b"")
        if hashlib.sha256((shown or "").encode()).hexdigest() != sys.argv[1]:
            return self.send(401, [("www-authenticate", "Basic realm=git")], b"")
        time.sleep(1)
        env = dict(os.environ, GIT_PROJECT_ROOT="/srv", GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
                   REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("content-type", ""), REMOTE_USER="u",
                   CONTENT_LENGTH=str(len(body)), HTTP_CONTENT_ENCODING=self.headers.get("content-encoding", ""))
        head, _, rest = subprocess.run(["git", "http-backend"], env=env, input=body, stdout=subprocess.PIPE).stdout.partition(b"\r\n\r\n")
        fields = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for name, value in fields if name == "Status"), 200)
        self.send(status, [field for field in fields if field[0] != "Status"], rest)
    def send(self, status, fields, body):
        self.send_response(status)
        for name, value in fields: self.send_header(name, value)
        self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;

/// Looks for the password for as long as `/run/look` exists: as root, in the arguments and variables of all processes.
const LOOK: &str = "while [ -e /run/look ]; do \
                    grep -lsa 'canary-git-[p]ass' /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> /run/found; \
                    echo >> /run/looked; sleep 0.5; done";

#[tokio::test]
async fn a_repository_is_cloned_changed_and_pushed_with_a_password_that_stays_nowhere() {
    let mut service = Service::with([("NULLSPACE_BASE_TAR", debian::base_tar().display().to_string())]).await;
    let api = service.api();
    until("the base template is built", Duration::from_secs(180), async || {
        api.get("/v1/templates/base").await.status == 200
    })
    .await;
    let sandbox = api.sandbox_with(json!({"timeout_ms": 1_800_000})).await;
    let git = |operation: &str| format!("/v1/sandboxes/{}/git/{operation}", sandbox.id);
    sandbox.sh("git init -q --bare -b main /srv/a.git && git -C /srv/a.git config http.receivepack true").await;
    sandbox.sh("git config --global init.defaultBranch main").await;
    // A helper of the guest's own that would store what it is told.
    sandbox.sh("git config --global credential.helper 'store --file /root/stored'").await;
    let file = json!({"path": "/srv/server.py", "content": SERVER});
    let _: Value = api.post(&format!("/v1/sandboxes/{}/files/write", sandbox.id), file).await.ok(200);
    let shown = {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("me:{PASSWORD}")))
    };
    let hash = {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(shown.as_bytes()))
    };
    sandbox.sh(&format!("(python3 /srv/server.py {hash} > /run/server.log 2>&1 < /dev/null &)")).await;
    until("the git server listens", Duration::from_secs(240), async || {
        sandbox.sh("curl -s -o /dev/null -w '%{http_code}' localhost:8000/ || true").await == "401"
    })
    .await;

    let auth = json!({"kind": "https", "username": "me", "password": PASSWORD});
    let url = "http://127.0.0.1:8000/a.git";
    api.post(&git("clone"), json!({"url": url, "path": "/workspace/a"})).await.refused(502, "exec_failed");
    let wrong = json!({"kind": "https", "username": "me", "password": "canary-wrong"});
    let refused = api.post(&git("clone"), json!({"url": url, "path": "/workspace/a", "auth": wrong})).await;
    assert!(!refused.refused(502, "exec_failed").error.contains("canary"));
    // A redirect to another name of the server does not get the password.
    sandbox.sh("rm -f /run/shown").await;
    let away = json!({"url": "http://127.0.0.1:8000/away/a.git", "path": "/workspace/a", "auth": auth});
    api.post(&git("clone"), away).await.refused(502, "exec_failed");
    assert_eq!(sandbox.sh("cat /run/shown 2>/dev/null || true").await, "");

    sandbox.sh(&format!("touch /run/look; ({LOOK}) > /dev/null 2>&1 < /dev/null &")).await;
    let clone = json!({"url": url, "path": "/workspace/a", "auth": auth});
    let cloned: GitCloneResponse = api.post(&git("clone"), clone).await.ok(200);
    assert_eq!(cloned.path, "/workspace/a");
    sandbox.sh("cd /workspace/a && echo one > one && echo two > '-two'").await;
    let status: GitStatus = api.get(&git("status?path=/workspace/a")).await.ok(200);
    assert_eq!((status.clean, status.branch.as_deref(), status.changed.len()), (false, Some("main"), 2));
    let added: GitOkResponse = api.post(&git("add"), json!({"path": "/workspace/a", "files": ["-two"]})).await.ok(200);
    assert!(added.ok);
    api.post(&git("commit"), json!({"path": "/workspace/a", "message": "x"})).await.refused(409, "file_error");
    let commit = json!({
        "path": "/workspace/a", "message": "first\n\n# kept", "add_all": true, "author_name": "A", "author_email": "a@b",
    });
    let commit: GitCommitResponse = api.post(&git("commit"), commit).await.ok(200);
    let again = json!({"path": "/workspace/a", "message": "x", "author_name": "A", "author_email": "a@b"});
    api.post(&git("commit"), again).await.refused(409, "file_error");
    let push = json!({"path": "/workspace/a", "set_upstream": true, "auth": auth});
    let pushed: GitSyncResponse = api.post(&git("push"), push).await.ok(200);
    assert!(pushed.summary.contains("main"), "{pushed:?}");
    let log: GitLogResponse200 = api.get(&git("log?path=a&limit=5")).await.ok(200);
    assert_eq!((log.commits.len(), &log.commits[0].sha), (1, &commit.sha));
    assert_eq!((log.commits[0].message.as_str(), log.commits[0].author_name.as_str()), ("first\n\n# kept", "A"));

    // Another clone pulls what the first pushes.
    let second = json!({"url": url, "path": "/workspace/b", "branch": "main", "depth": 1, "auth": auth});
    let _: GitCloneResponse = api.post(&git("clone"), second).await.ok(200);
    sandbox.sh("echo more >> /workspace/a/one").await;
    let more =
        json!({"path": "/workspace/a", "message": "more", "files": ["one"], "author_name": "A", "author_email": "a@b"});
    let _: GitCommitResponse = api.post(&git("commit"), more).await.ok(200);
    let _: GitSyncResponse = api.post(&git("push"), json!({"path": "/workspace/a", "auth": auth})).await.ok(200);
    let pulled: GitSyncResponse = api.post(&git("pull"), json!({"path": "/workspace/b", "auth": auth})).await.ok(200);
    assert!(pulled.summary.contains("one"), "{pulled:?}");
    assert_eq!(sandbox.sh("cat /workspace/b/one").await, "one\nmore");

    // The password was in no process's arguments or variables, is in no file, and not in the service's log.
    assert_ne!(sandbox.sh("rm /run/look; wc -l < /run/looked").await, "0");
    assert_eq!(sandbox.sh("cat /run/found").await, "");
    let files =
        "grep -rlI 'canary-git-[p]ass' --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev / 2>/dev/null || true";
    assert_eq!(sandbox.sh(files).await, "");
    assert_eq!(sandbox.sh("ls /root/stored 2>/dev/null || true").await, "");
    assert!(!service.log().lines().join("\n").contains("canary"));

    // Branches.
    let branch =
        |name: &str, action: &str, force: bool| json!({"path": "a", "name": name, "action": action, "force": force});
    let _: GitOkResponse = api.post(&git("branch"), branch("side", "create", false)).await.ok(200);
    api.post(&git("branch"), branch("side", "create", false)).await.refused(409, "file_error");
    let checkout = json!({"path": "a", "ref": "new", "create": true});
    let _: GitOkResponse = api.post(&git("checkout"), checkout).await.ok(200);
    let list: GitBranchList = api.get(&git("branch?path=a")).await.ok(200);
    assert_eq!(
        (list.branches, list.current.as_deref()),
        (["main", "new", "side"].map(str::to_owned).to_vec(), Some("new"))
    );
    let _: GitOkResponse = api.post(&git("checkout"), json!({"path": "a", "ref": commit.sha})).await.ok(200);
    let status: GitStatus = api.get(&git("status?path=a")).await.ok(200);
    assert!(status.detached && status.clean && status.branch.is_none(), "{status:?}");
    for name in ["side", "new"] {
        let _: GitOkResponse = api.post(&git("branch"), branch(name, "delete", true)).await.ok(200);
    }
    api.post(&git("checkout"), json!({"path": "a", "ref": "nothing"})).await.refused(409, "file_error");

    // What git would read as an option, a program or another place.
    for (operation, body) in [
        ("clone", json!({"url": "--upload-pack=touch /run/hit", "path": "x"})),
        ("clone", json!({"url": "ext::sh -c 'touch /run/hit'", "path": "x"})),
        ("checkout", json!({"path": "a", "ref": "--detach"})),
        ("branch", json!({"path": "a", "name": "-d"})),
        ("push", json!({"path": "a", "remote": "--receive-pack=touch /run/hit"})),
        ("push", json!({"path": "a", "branch": "+main:other"})),
    ] {
        api.post(&git(operation), body).await.refused(400, "invalid_request");
    }
    assert_eq!(sandbox.sh("ls /run/hit 2>/dev/null || true").await, "");
    for path in ["/nowhere", "/tmp"] {
        api.get(&git(&format!("status?path={path}"))).await.refused(404, "not_found");
    }
    sandbox.sh("mv /usr/bin/git /usr/bin/git-away").await;
    let missing = api.get(&git("status?path=a")).await.refused(409, "file_error");
    assert!(missing.error.contains("apt_install"), "{missing:?}");
    sandbox.delete().await;
    service.stop().await;
}
