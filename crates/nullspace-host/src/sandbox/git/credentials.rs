//! Credentials of one git operation, on their way into the guest.
//!
//! ```text
//!   https  stdin ──> sh ── fd 3 ──> git ── fd 3 ──> helper of one origin: prints what is in the pipe, once
//!   ssh    stdin ──> sh ── fd 3 ──> ssh-add ──> ssh-agent <── ssh <── git
//! ```
//! - They are in no argument, no file and no variable of git: they travel in a pipe, and are gone once they are read. A passphrase is a
//!   variable of `ssh-add` alone, while that runs.
//! - `https`: git asks the helper for the URL's own scheme, host and port only. A server that redirects to another one does not get
//!   them. No other helper is asked or told, so none stores them. Hooks do not run.
//! - `ssh`: the key is in the agent's memory until git ends, for at most 15 minutes.
//! - The guest's root, and processes of the same user, can look into git's memory, as everywhere.

use std::fmt;

use nullspace_api::{GitAuth, GitAuthKind, Secret};
use nullspace_service::{Error, Result};

use super::arguments::Remote;

/// Longest user name, password and passphrase, bytes.
const MAX_WORD: usize = 8 << 10;
/// Longest private key, bytes.
const MAX_KEY: usize = 32 << 10;

/// The helper that prints what is in the pipe.
const HELPER: &str = "!f() { test \"$1\" = get && cat <&3; }; f";

/// Moves the pipe out of git's way.
const WITH_PIPE: &str = "exec 3<&0 </dev/null\nexec git \"$@\"\n";

/// Loads the key into the agent that this runs under. The program that tells the passphrase does so once: `ssh-add` would ask for a
/// better one for ever.
const WITH_AGENT: &str = r#"exec 3<&0 </dev/null
IFS= read -r pass <&3
if [ -n "$pass" ]; then
  dir=$(mktemp -d) || exit 75
  printf '#!/bin/sh\nrm -f "$0"\nprintf "%%s\\n" "$NULLSPACE_ASKED"\n' >"$dir/ask" && chmod 700 "$dir/ask" || exit 75
  NULLSPACE_ASKED=$pass DISPLAY=none SSH_ASKPASS=$dir/ask SSH_ASKPASS_REQUIRE=force ssh-add -q -t 900 - <&3
  code=$?
  rm -rf "$dir"
else
  SSH_ASKPASS_REQUIRE=never ssh-add -q -t 900 - <&3
  code=$?
fi
pass=
exec 3<&-
if [ "$code" != 0 ]; then
  kill "$SSH_AGENT_PID"
  echo "nullspace: ssh-add did not take the private key" >&2
  exit 76
fi
git "$@"
code=$?
kill "$SSH_AGENT_PID"
exit "$code"
"#;

/// The exit code of [`WITH_AGENT`] for a key that is none, or a wrong passphrase.
pub(super) const KEY_REFUSED: i32 = 76;

/// ssh asks nothing, and takes a host's key when it meets the host first.
pub(super) const SSH: &str = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30";
const SSH_WITH_AGENT: &str = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=30 \
                              -o IdentityAgent=SSH_AUTH_SOCK -o ForwardAgent=no";

/// Credentials for one remote, checked.
pub(super) struct Credentials {
    /// Before git's own arguments.
    pub(super) options: Vec<String>,
    /// The program around git.
    pub(super) program: Vec<String>,
    /// The value of `GIT_SSH_COMMAND`, if it is another.
    pub(super) ssh: Option<&'static str>,
    /// What the program reads from its stdin.
    pub(super) stdin: Secret,
    /// What must not be shown.
    pub(super) hidden: Vec<Secret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Checks the credentials of a request.
    pub(super) fn of(auth: GitAuth, remote: &Remote) -> Result<Credentials> {
        match (auth.kind, remote) {
            (GitAuthKind::Https, Remote::Http { origin, url }) => https(auth, origin, url),
            (GitAuthKind::Ssh, Remote::Ssh) => ssh(auth),
            (GitAuthKind::Https, _) => {
                Err(Error::invalid("auth of the kind https needs a remote that begins with https:// or http://"))
            }
            (GitAuthKind::Ssh, _) => {
                Err(Error::invalid("auth of the kind ssh needs a remote like ssh://git@host/path or git@host:path"))
            }
        }
    }
}

/// A word that is one line.
fn word(field: &str, value: &str, max: usize) -> Result<()> {
    if value.is_empty() || value.len() > max || value.contains(['\0', '\n', '\r']) {
        return Err(Error::invalid(format!("{field} must be one line of 1 to {max} bytes")));
    }
    Ok(())
}

fn https(auth: GitAuth, origin: &str, url: &str) -> Result<Credentials> {
    let (Some(username), Some(password)) = (auth.username, auth.password) else {
        return Err(Error::invalid("auth of the kind https needs username and password"));
    };
    if auth.private_key.is_some() || auth.passphrase.is_some() {
        return Err(Error::invalid("private_key and passphrase belong to auth of the kind ssh"));
    }
    word("auth.username", &username, MAX_WORD)?;
    word("auth.password", password.expose(), MAX_WORD)?;
    // `-c` ends a key at its first `=`.
    if url.contains('=') {
        return Err(Error::invalid("the URL has a = in it, which does not go with auth: write it as %3D"));
    }
    let mut options = vec!["-c".to_owned(), "core.hooksPath=/dev/null".to_owned()];
    // Helpers of the guest's own configuration would be told the password, and store it. An empty value forgets those before it
    // that are not more specific, and nothing is more specific than the whole URL.
    options.extend(["-c".to_owned(), "credential.helper=".to_owned()]);
    for scope in [origin, url] {
        for helper in ["", HELPER] {
            options.extend(["-c".to_owned(), format!("credential.{scope}.helper={helper}")]);
        }
    }
    let stdin = Secret::from(format!("username={username}\npassword={}\n", password.expose()));
    let program = ["sh", "-c", WITH_PIPE, "nullspace-git"].map(ToOwned::to_owned).to_vec();
    Ok(Credentials { options, program, ssh: None, stdin, hidden: vec![password] })
}

fn ssh(auth: GitAuth) -> Result<Credentials> {
    let Some(key) = auth.private_key else {
        return Err(Error::invalid("auth of the kind ssh needs private_key"));
    };
    if auth.username.is_some() || auth.password.is_some() {
        return Err(Error::invalid(
            "username and password belong to auth of the kind https; the user of ssh is in the URL",
        ));
    }
    let text = key.expose();
    if text.trim().is_empty() || text.len() > MAX_KEY || text.contains('\0') {
        return Err(Error::invalid(format!("auth.private_key must have 1 to {MAX_KEY} bytes, as its file has them")));
    }
    let passphrase = auth.passphrase.filter(|passphrase| !passphrase.expose().is_empty());
    if let Some(passphrase) = &passphrase {
        word("auth.passphrase", passphrase.expose(), MAX_WORD)?;
    }
    let shown = passphrase.as_ref().map_or("", |passphrase| passphrase.expose());
    let stdin = Secret::from(format!("{shown}\n{}\n", text.trim().replace("\r\n", "\n")));
    let program = ["ssh-agent", "sh", "-c", WITH_AGENT, "nullspace-git"].map(ToOwned::to_owned).to_vec();
    let options = ["-c", "core.hooksPath=/dev/null"].map(ToOwned::to_owned).to_vec();
    let hidden = [Some(key), passphrase].into_iter().flatten().collect();
    Ok(Credentials { options, program, ssh: Some(SSH_WITH_AGENT), stdin, hidden })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    const URL: &str = "https://h:1/a.git";

    fn auth(kind: GitAuthKind) -> GitAuth {
        GitAuth { kind, username: None, password: None, private_key: None, passphrase: None }
    }

    fn password(password: &str) -> GitAuth {
        GitAuth { username: Some("u".to_owned()), password: Some(password.into()), ..auth(GitAuthKind::Https) }
    }

    fn http() -> Remote {
        Remote::Http { origin: "https://h:1".to_owned(), url: URL.to_owned() }
    }

    #[test]
    fn a_password_is_in_the_pipe_alone() {
        let made = Credentials::of(password("canary pä=ss"), &http()).unwrap();
        assert_eq!(made.stdin.expose(), "username=u\npassword=canary pä=ss\n");
        let arguments = [made.options.clone(), made.program.clone()].concat().join("\n");
        assert!(!arguments.contains("canary") && !format!("{made:?}").contains("canary"));
        // The same for the origin and for the whole URL, each after a reset.
        let helpers: Vec<_> = made.options.iter().filter(|option| option.starts_with("credential.")).collect();
        assert_eq!(helpers.len(), 5);
        assert_eq!(helpers[0], "credential.helper=");
        assert_eq!(helpers[1], "credential.https://h:1.helper=");
        assert_eq!(helpers[3], "credential.https://h:1/a.git.helper=");
        assert!(helpers[2].ends_with(HELPER) && helpers[4].ends_with(HELPER));
    }

    #[test]
    fn a_key_is_in_the_pipe_alone() {
        let key = "-----BEGIN X-----\r\ncanary\r\n-----END X-----";
        let with = |passphrase: Option<&str>| {
            let passphrase = passphrase.map(Secret::from);
            Credentials::of(
                GitAuth { private_key: Some(key.into()), passphrase, ..auth(GitAuthKind::Ssh) },
                &Remote::Ssh,
            )
        };
        let made = with(None).unwrap();
        assert_eq!(made.stdin.expose(), "\n-----BEGIN X-----\ncanary\n-----END X-----\n");
        assert!(!made.program.concat().contains("canary"));
        assert!(with(Some("hush")).unwrap().stdin.expose().starts_with("hush\n-----BEGIN"));
        assert!(with(Some("a\nb")).is_err());
    }

    #[test]
    fn credentials_of_the_wrong_kind_or_form_are_refused() {
        let key = GitAuth { private_key: Some("k".into()), ..auth(GitAuthKind::Ssh) };
        let odd = Remote::Http { origin: "https://h".to_owned(), url: "https://h/a=b".to_owned() };
        for (auth, remote) in [
            (password("p"), Remote::Ssh),
            (password("p"), Remote::Other),
            (password(""), http()),
            (password("a\nhelper=x"), http()),
            (password("a\rb"), http()),
            (password("p"), odd),
            (GitAuth { private_key: Some("k".into()), ..password("p") }, http()),
            (GitAuth { username: None, ..password("p") }, http()),
            (GitAuth { username: Some("a\nb".into()), ..password("p") }, http()),
            (auth(GitAuthKind::Ssh), Remote::Ssh),
            (key.clone(), http()),
            (GitAuth { username: Some("u".into()), ..key.clone() }, Remote::Ssh),
            (GitAuth { private_key: Some(" \n".into()), ..key }, Remote::Ssh),
        ] {
            let error = Credentials::of(auth, &remote).unwrap_err();
            assert_eq!(error.code, nullspace_api::ErrorResponseCode::InvalidRequest, "{error}");
        }
    }

    /// The real git and the real pipe: what it asks the helper for, and what it does not.
    #[test]
    fn git_gets_the_password_for_its_origin_and_no_other_helper_is_told() {
        let home = tempfile::TempDir::new().unwrap();
        let stored = home.path().join("stored");
        // A helper that stores, in the most specific form that a guest can give it.
        let config = format!(
            "[credential]\n\thelper = store --file {0}\n[credential \"{URL}\"]\n\thelper = store --file {0}\n[credential \"https://h:1\"]\n\thelper = store --file {0}\n",
            stored.display()
        );
        std::fs::write(home.path().join(".gitconfig"), config).unwrap();
        let ask = |verb: &str, question: &str| {
            let made = Credentials::of(password("canary"), &http()).unwrap();
            // `git credential` reads the question from its stdin, as git's own transport writes it into a pipe.
            let program = WITH_PIPE.replace("exec git", "printf '%b' \"$Q\" | git");
            let mut child = Command::new("sh")
                .args(["-c", &program, "nullspace-git"])
                .args(&made.options)
                .args(["credential", verb])
                .env("Q", question)
                .env("HOME", home.path())
                .env("GIT_TERMINAL_PROMPT", "0")
                .env_remove("GIT_ASKPASS")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(made.stdin.expose().as_bytes()).unwrap();
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        };
        assert!(ask("fill", "protocol=https\\nhost=h:1\\npath=a.git\\n\\n").contains("password=canary"));
        for other in
            ["protocol=https\\nhost=evil\\n\\n", "protocol=http\\nhost=h:1\\n\\n", "protocol=https\\nhost=h:2\\n\\n"]
        {
            assert!(!ask("fill", other).contains("canary"), "{other}");
        }
        ask("approve", "protocol=https\\nhost=h:1\\npath=a.git\\nusername=u\\npassword=canary\\n\\n");
        assert!(!stored.exists(), "another helper was told");
    }
}
