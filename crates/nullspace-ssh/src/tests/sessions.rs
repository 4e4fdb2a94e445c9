//! What a client does in a sandbox: commands, terminals, files, forwarded ports.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use super::support::{Server, eventually, output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_streams_its_user_and_its_exit_status() {
    let server = Server::start().await;
    let ran = output(server.ssh(&[], &["cat; echo to stderr >&2; exit 42"]), b"to stdin").await;
    assert_eq!((text(&ran.stdout).as_str(), ran.status.code()), ("to stdin", Some(42)), "{}", text(&ran.stderr));
    assert_eq!(text(&ran.stderr), "to stderr\n");
    assert!(server.fake.inside.called("run cat; echo to stderr >&2; exit 42 user Some(\"dev\")"));
    let mut client = server.ssh(&["-o", "SendEnv=LC_*", "-o", "SendEnv=PATH_X"], &["echo $LC_TIME.$PATH_X"]);
    client.env("LC_TIME", "de").env("PATH_X", "x");
    assert_eq!(text(&output(client, b"").await.stdout), "de.\n");
    let shell = output(server.ssh(&["-T"], &[]), b"echo from a script; exit 7\n").await;
    assert_eq!((text(&shell.stdout).as_str(), shell.status.code()), ("from a script\n", Some(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn much_input_and_output_pass_in_both_directions_at_once() {
    let server = Server::start().await;
    // More than all windows and sockets in between hold.
    let input: Vec<u8> = (0..24_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ran = output(server.ssh(&[], &["cat"]), &input).await;
    assert_eq!((ran.stdout.len(), ran.status.code()), (input.len(), Some(0)), "{}", text(&ran.stderr));
    assert!(ran.stdout == input, "the bytes are others");
    // A program that reads late slows its client down, and loses nothing.
    let ran = output(server.ssh(&[], &["sleep 2; wc -c"]), &input).await;
    assert_eq!(text(&ran.stdout).trim(), input.len().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_opened_typed_into_and_ends_with_its_status() {
    let server = Server::start().await;
    let mut client = server.ssh(&["-tt"], &[]);
    client.env("TERM", "vt100");
    let ran = output(client, b"hello\nexit 3\n").await;
    assert_eq!(ran.status.code(), Some(3), "{}", text(&ran.stderr));
    assert!(text(&ran.stdout).starts_with("ready\r\ntyped:hello\r\n"), "{}", text(&ran.stdout));
    assert!(server.fake.inside.called("None None Some(\"vt100\") user Some(\"dev\")"), "the user's own shell");
    let ran = output(server.ssh(&["-tt"], &["top -b"]), b"exit 0\n").await;
    assert_eq!(ran.status.code(), Some(0));
    assert!(server.fake.inside.called("Some(\"sh\") Some([\"-c\", \"top -b\"])"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_command_and_its_terminal() {
    let server = Server::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let mark = folder.path().join("ended");
    let line = format!("trap 'touch {}; exit' HUP; echo on; while :; do sleep 0.05; done", mark.display());
    for (options, words, ended) in [(&[][..], &[line.as_str()][..], "signal 1"), (&["-tt"], &[], "end terminal 7")] {
        let mut client = server.ssh(options, words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        client.stdout.as_mut().unwrap().read_u8().await.unwrap();
        client.kill().await.unwrap();
        eventually(ended, || server.fake.inside.called(ended)).await;
    }
    eventually("the command's trap", || mark.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_with_the_sandboxs_sftp_server() {
    let server = Server::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let content: Vec<u8> = (0..3_u32 << 20).map(|at| (at >> 3) as u8).collect();
    std::fs::write(&from, &content).unwrap();
    let mut client = Command::new("scp");
    client.args(server.options()).args(["-s", "-P", &server.address.port().to_string()]).arg(&from);
    client.arg(format!("{}@127.0.0.1:{}", server.sandbox, to.display())).env_remove("SSH_AUTH_SOCK");
    let ran = output(client, b"").await;
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(std::fs::read(&to).unwrap() == content, "the bytes are others");
    let ran = output(server.ssh(&["-s"], &["netconf"]), b"").await;
    assert!(!ran.status.success(), "there is no other subsystem");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_sandbox_is_forwarded_and_nothing_else_is() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The answer follows the end of the question: each direction ends on its own.
                let mut asked = Vec::new();
                socket.read_to_end(&mut asked).await.unwrap();
                socket.write_all(&[b"answer to ", &asked[..]].concat()).await.unwrap();
            });
        }
    });
    for host in ["127.0.0.1", "localhost"] {
        let ran = output(server.ssh(&["-W", &format!("{host}:{port}")], &[]), b"a question").await;
        assert_eq!(text(&ran.stdout), "answer to a question", "{}", text(&ran.stderr));
    }
    for to in ["10.0.0.1:80", "169.254.169.254:80", "example.org:80", "0.0.0.0:80"] {
        let ran = output(server.ssh(&["-W", to], &[]), b"").await;
        assert!(text(&ran.stderr).contains("administratively prohibited"), "{to}: {}", text(&ran.stderr));
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let ran = output(server.ssh(&["-W", &format!("127.0.0.1:{closed}")], &[]), b"").await;
    assert!(text(&ran.stderr).contains("connect failed"), "{}", text(&ran.stderr));
    assert!(server.fake.inside.calls.lock().unwrap().iter().all(|call| !call.starts_with("dial 80")));
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"];
    let ran = output(server.ssh(&options, &["true"]), b"").await;
    assert!(!ran.status.success(), "a port of the server was opened for a client");
}
