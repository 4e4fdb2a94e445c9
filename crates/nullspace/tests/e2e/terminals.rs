//! A terminal of a sandbox: through the loss of its client, a snapshot and a pause; and `nullspace sandbox shell` on a terminal.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use nullspace_api::{PtySessionInfo, PtyStart, SandboxHandle, SnapshotInfo};
use nullspace_client::{Client, TerminalEvent, TerminalInput, TerminalOutput};
use secrecy::SecretString;
use serde_json::json;

use crate::fixture::{Api, Image, Registry, Service};

/// What a loaded machine under software emulation may take for one message.
const PATIENCE: Duration = Duration::from_secs(60);

struct Terminal(TerminalOutput, TerminalInput);

impl Terminal {
    async fn type_in(&mut self, keys: &str) {
        self.1.type_in(keys.as_bytes()).await.expect("type");
    }

    /// Reads until the output has a text; all of it until then.
    async fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next()).await {
                Ok(Ok(Some(TerminalEvent::Output(bytes)))) => seen.extend(bytes),
                other => panic!("{other:?} before {text:?}, after {:?}", String::from_utf8_lossy(&seen)),
            }
            let shown = String::from_utf8_lossy(&seen);
            if shown.contains(text) {
                return shown.into_owned();
            }
        }
    }

    /// Reads to the end; the exit code.
    async fn end(&mut self) -> i32 {
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next()).await {
                Ok(Ok(Some(TerminalEvent::Output(_)))) => {}
                Ok(Ok(Some(TerminalEvent::Exit(code)))) => return code,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn client(api: &Api) -> Client {
    Client::new(api.base(), SecretString::from(api.key().to_owned())).expect("a client")
}

async fn terminals(api: &Api, sandbox: &str) -> Vec<PtySessionInfo> {
    api.get(&format!("/v1/sandboxes/{sandbox}/pty")).await.ok(200)
}

#[tokio::test]
async fn a_terminal_outlives_its_client_a_snapshot_and_a_pause() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;
    let sandbox = api.sandbox(built.template()).await;
    let id = sandbox.id.clone();
    let client = client(&api);

    let start = PtyStart { cols: Some(97), rows: Some(41), user: Some("app".into()), ..PtyStart::default() };
    let (output, input) = client.open_terminal(&id, start).await.expect("a terminal");
    let session = output.session().clone();
    assert!(session.session_id.starts_with("pty_") && (session.cols, session.rows) == (97, 41), "{session:?}");
    assert_eq!(terminals(&api, &id).await, std::slice::from_ref(&session));
    let mut terminal = Terminal(output, input);
    terminal.type_in("stty size; echo \"$(id -u) $TERM\"\n").await;
    let seen = terminal.until("1000 xterm-256color\r\n").await;
    assert!(seen.contains("41 97\r\n"), "{seen}");

    // Another tenant's is not there.
    let other = service.api_of("other");
    let path = format!("/v1/sandboxes/{id}/pty");
    other.get(&path).await.refused(404, "sandbox_not_found");
    other.delete(&format!("{path}/{}", session.session_id)).await.refused(404, "sandbox_not_found");

    // A snapshot meanwhile: nothing of the output is lost or doubled, and no job notices it.
    terminal
        .type_in("i=0; while [ $i -lt 40 ]; do echo \"tick $i.\"; i=$((i+1)); sleep 0.1; done; echo do''ne\n")
        .await;
    let mut seen = terminal.until("tick 3.").await;
    let _: SnapshotInfo = api.post(&format!("/v1/sandboxes/{id}/snapshots"), json!({})).await.ok(201);
    seen += &terminal.until("done\r\n").await;
    let (mut rest, mut ticks) = (seen.as_str(), 0);
    while let Some((_, behind)) = rest.split_once(&format!("tick {ticks}.\r\n")) {
        (rest, ticks) = (behind, ticks + 1);
    }
    assert_eq!((ticks, seen.matches("tick ").count() - seen.matches("\"tick ").count()), (40, 40), "{seen}");

    // The client is lost, and the terminal is found again, with what it showed.
    drop(terminal);
    let (output, input) = client.connect_terminal(&id, &session.session_id).await.expect("the terminal");
    assert_eq!((output.session().pid, output.lost()), (session.pid, 0));
    let mut terminal = Terminal(output, input);
    terminal.until("done\r\n").await;
    let resized = api.post(&format!("{path}/{}/resize", session.session_id), json!({"cols": 50, "rows": 30})).await;
    assert_eq!(resized.status, 204);
    terminal.type_in("stty size\n").await;
    terminal.until("30 50\r\n").await;
    terminal.type_in("sleep 1000\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    terminal.type_in("\u{3}").await;
    terminal.type_in("echo status $?\n").await;
    terminal.until("status 130\r\n").await;

    // A second one is killed, with its jobs.
    let (output, input) = client.open_terminal(&id, PtyStart::default()).await.expect("a terminal");
    let second = output.session().session_id.clone();
    let mut killed = Terminal(output, input);
    killed.type_in("sleep 7777 & sleep 8888\n").await;
    killed.until("8888").await;
    assert_eq!(terminals(&api, &id).await.len(), 2);
    client.kill_terminal(&id, &second).await.expect("kill");
    assert!(killed.end().await >= 128);
    assert_eq!(sandbox.sh("ps | grep -c -e '[7]777' -e '[8]888'; true").await, "0");
    assert_eq!(terminals(&api, &id).await.iter().map(|one| one.pid).collect::<Vec<_>>(), [session.pid]);

    // After a pause and a resume it goes on, in the sandbox that runs in the place of this one.
    terminal.type_in("word=kept\n").await;
    terminal.until("kept").await;
    drop(terminal);
    let paused: SnapshotInfo = api.post(&format!("/v1/sandboxes/{id}/hibernate"), json!({})).await.ok(200);
    let resumed: SandboxHandle = api.post(&format!("/v1/sandboxes/{}/resume", paused.id), json!({})).await.ok(200);
    let (output, input) = client.connect_terminal(&resumed.id, &session.session_id).await.expect("the terminal");
    let mut terminal = Terminal(output, input);
    terminal.type_in("echo \"still $word.\"; exit 7\n").await;
    terminal.until("still kept.\r\n").await;
    assert_eq!(terminal.end().await, 7);
    assert!(terminals(&api, &resumed.id).await.is_empty());
    api.get(&format!("/v1/sandboxes/{}/pty/{}", resumed.id, session.session_id)).await.refused(404, "not_found");

    // The command, on a terminal of its own that `script` makes. It leaves the terminal as it was.
    let line = "stty rows 33 cols 77; stty -g; \"$NULLSPACE\" sandbox shell \"$SANDBOX\"; echo \"code $?\"; stty -g";
    let mut shell = Command::new("script")
        .args(["-q", "-e", "-c", line, "/dev/null"])
        .env("NULLSPACE", env!("CARGO_BIN_EXE_nullspace"))
        .env("SANDBOX", &resumed.id)
        .env("NULLSPACE_API_URL", api.base())
        .env("NULLSPACE_API_KEY", api.key())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start script");
    let mut keys = shell.stdin.take().expect("stdin");
    let shown = tokio::task::spawn_blocking(move || {
        // The remote shell echoes it, or the local terminal does before it is in raw mode.
        std::thread::sleep(Duration::from_secs(3));
        keys.write_all(b"stty size; exit 5\r").expect("type");
        keys.flush().expect("type");
        let shown = shell.wait_with_output().expect("script ends");
        drop(keys);
        String::from_utf8_lossy(&shown.stdout).into_owned()
    });
    let shown = tokio::time::timeout(PATIENCE, shown).await.expect("in time").expect("no panic");
    assert!(shown.contains("33 77\r\n") && shown.contains("code 5\r\n"), "{shown}");
    let settings: Vec<&str> = shown.lines().filter(|line| line.matches(':').count() > 20).collect();
    assert!(settings.len() == 2 && settings.first() == settings.last(), "{shown}");

    // Without one, its input is typed.
    let mut shell = Command::new(env!("CARGO_BIN_EXE_nullspace"))
        .args([
            "sandbox",
            "shell",
            &resumed.id,
            "--",
            "sh",
            "-c",
            "read -r word; echo \"got $word.\"; read -r x || exit 9",
        ])
        .env("NULLSPACE_API_URL", api.base())
        .env("NULLSPACE_API_KEY", api.key())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the command");
    shell.stdin.take().expect("stdin").write_all(b"typed\n").expect("type");
    let ended = tokio::task::spawn_blocking(move || shell.wait_with_output());
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("in time").expect("no panic").expect("it ends");
    let shown = String::from_utf8_lossy(&ended.stdout);
    assert!(shown.contains("got typed.\r\n"), "{shown}");
    assert_eq!(ended.status.code(), Some(9));

    assert_eq!(api.delete(&format!("/v1/sandboxes/{}", resumed.id)).await.status, 200);
    service.stop().await;
}
