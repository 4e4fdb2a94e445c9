//! Git repositories in a running sandbox, by the `git` program of its image.
//!
//! ```text
//!   request ── arguments: checked ──> job ── exec of the agent ──> git in the guest
//!                 credentials: a pipe ─┘            │
//!   answer <── parse: formats for programs <────────┴── failure: what git says, as a code of the API
//! ```
//! Everything of a request is an argument or input of git, never a part of a line for a shell. Git asks nothing: it has no terminal
//! and no editor. It runs as the sandbox's default user, with the sandbox's variables, of which those of git itself are dropped if
//! they would change what a request means.

mod arguments;
mod credentials;
mod failure;
mod parse;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::{
    ErrorResponseCode, ExecRequest, GitAddRequest, GitAuth, GitBranchList, GitBranchRequest, GitBranchRequestAction,
    GitCheckoutRequest, GitCloneRequest, GitCloneResponse, GitCommit, GitCommitRequest, GitCommitResponse, GitStatus,
    GitSyncRequest, GitSyncResponse, Secret,
};
use nullspace_guest::host::{AgentError, ExecOutput};
use nullspace_guest::message::Exec;
use nullspace_service::{Error, LiveGit, Memory, Result};

use self::arguments::Remote;
use self::credentials::Credentials;
use self::parse::Unreadable;
use super::exec::command;
use super::live::Live;

/// Time limit of an operation in the repository, and of one with a remote, seconds.
const LOCAL_SECS: u64 = 60;
const REMOTE_SECS: u64 = 600;
/// Time beyond it, until the agent counts as hung.
const GRACE: Duration = Duration::from_secs(15);
/// Most bytes of an answer that is read, and of what git says beside it.
const MAX_ANSWER: usize = 4 << 20;
const MAX_SAID: usize = 64 << 10;
/// Variables of git that a sandbox may set; all others of git's own are dropped.
const OWN_VARIABLES: &[&str] = &[
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_DATE",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_SSL_NO_VERIFY",
];

/// One run of git.
struct Job {
    /// The operation, for errors.
    operation: &'static str,
    /// Arguments of git, from its options on.
    arguments: Vec<String>,
    /// Variables on top of the others.
    envs: Vec<(&'static str, String)>,
    stdin: Option<Secret>,
    credentials: Option<Credentials>,
    limit_secs: u64,
    /// Most bytes of stdout and stderr that are kept.
    keep: usize,
}

impl Job {
    fn new(operation: &'static str, arguments: &[&str]) -> Job {
        Job {
            operation,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            envs: Vec::new(),
            stdin: None,
            credentials: None,
            limit_secs: LOCAL_SECS,
            keep: MAX_SAID,
        }
    }

    /// A job in a repository.
    fn at(operation: &'static str, path: &str, arguments: &[&str]) -> Result<Job> {
        let path = arguments::path("path", path)?;
        Ok(Job::new(operation, &[&["-C", path.as_str()], arguments].concat()))
    }

    fn reading(self, bytes: usize) -> Job {
        Job { keep: bytes, ..self }
    }

    /// A job with a remote, which may ask for credentials.
    fn with_remote(self, auth: Option<GitAuth>, remote: &Remote) -> Result<Job> {
        let credentials = auth.map(|auth| Credentials::of(auth, remote)).transpose()?;
        Ok(Job { credentials, limit_secs: REMOTE_SECS, ..self })
    }

    /// The agent's form of it, and its input.
    fn exec(&self, live: &Live) -> Result<(Exec, Option<Secret>)> {
        let request =
            ExecRequest { command: "git".to_owned(), timeout_secs: Some(self.limit_secs), ..ExecRequest::default() };
        let exec = command(live, &request)?;
        let (options, program, stdin) = match &self.credentials {
            None => (&[][..], vec!["git".to_owned()], self.stdin.clone()),
            Some(credentials) => {
                (&credentials.options[..], credentials.program.clone(), Some(credentials.stdin.clone()))
            }
        };
        // Names of files are not patterns.
        let always = ["-c", "core.askPass=", "--literal-pathspecs"].map(ToOwned::to_owned);
        let argv = [&program[..], &always, options, &self.arguments].concat();
        let mut envs = environment(exec.envs, self.credentials.as_ref().and_then(|credentials| credentials.ssh));
        envs.extend(self.envs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Ok((Exec { argv, envs, stdin: stdin.is_some(), ..exec }, stdin))
    }

    /// Runs it. Its output is charged to `memory`.
    async fn run(self, live: &Live, memory: Option<&dyn Memory>) -> Result<ExecOutput> {
        let (exec, stdin) = self.exec(live)?;
        let program = exec.argv.first().cloned().unwrap_or_default();
        let limit = Duration::from_secs(self.limit_secs).saturating_add(GRACE);
        let keep = self.keep;
        let work = live.using(|agent| async move {
            let running = async {
                let mut session = agent.exec(exec).await?;
                if let Some(stdin) = stdin {
                    match session.write(stdin.expose().as_bytes()).await {
                        // It has ended before it had read all, and its end says why.
                        Ok(()) | Err(AgentError::Closed) => {}
                        Err(error) => return Err(error),
                    }
                }
                session.collect_while(keep, |bytes| memory.is_none_or(|memory| memory.grow(bytes).is_ok())).await
            };
            match tokio::time::timeout(limit, running).await {
                Ok(output) => output.map_err(|error| failure::of_agent(&program, error)),
                Err(_) => {
                    Err(Error::new(ErrorResponseCode::ExecTimeout, "the sandbox did not answer in time while git ran"))
                }
            }
        });
        work.await
    }

    /// Runs it, and expects it to succeed.
    async fn output(self, live: &Live, memory: Option<&dyn Memory>) -> Result<ExecOutput> {
        let hidden = self.credentials.as_ref().map(|credentials| credentials.hidden.clone()).unwrap_or_default();
        let operation = self.operation;
        let output = self.run(live, memory).await?;
        if output.exit.code != 0 || output.exit.timed_out {
            return Err(failure::of(operation, &output, &hidden));
        }
        Ok(output)
    }

    async fn done(self, live: &Live) -> Result<()> {
        self.output(live, None).await.map(drop)
    }

    /// Runs it, and expects all of its output to be there.
    async fn whole(self, live: &Live, memory: &dyn Memory) -> Result<Vec<u8>> {
        let operation = self.operation;
        let output = self.output(live, Some(memory)).await?;
        if output.truncated {
            let message = format!(
                "git {operation} answers more than {MAX_ANSWER} bytes, or than there is memory for: ask for less, or run git by exec"
            );
            return Err(Error::new(ErrorResponseCode::FileError, message));
        }
        Ok(output.stdout)
    }
}

/// The variables of git.
fn environment(sandbox: BTreeMap<String, String>, ssh: Option<&'static str>) -> BTreeMap<String, String> {
    let mut envs = sandbox;
    envs.retain(|name, _| {
        let foreign = name.starts_with("GIT_") || name.starts_with("SSH_ASKPASS");
        !foreign || OWN_VARIABLES.contains(&name.as_str())
    });
    if let Some(ssh) = ssh {
        envs.remove("GIT_SSH");
        envs.insert("GIT_SSH_COMMAND".to_owned(), ssh.to_owned());
    } else if !envs.contains_key("GIT_SSH") {
        envs.entry("GIT_SSH_COMMAND".to_owned()).or_insert_with(|| credentials::SSH.to_owned());
    }
    let always = [
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_EDITOR", ":"),
        ("GIT_MERGE_AUTOEDIT", "no"),
        ("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh"),
        ("GIT_OPTIONAL_LOCKS", "0"),
        // Its words are read here.
        ("LC_ALL", "C"),
    ];
    envs.extend(always.map(|(name, value)| (name.to_owned(), value.to_owned())));
    envs
}

fn unreadable(_: Unreadable) -> Error {
    let message = "git answered something unexpected: this needs git 2.13 or newer in the sandbox";
    Error::new(ErrorResponseCode::ExecFailed, message)
}

/// What a remote is that a repository's configuration names. Code in the sandbox can change it.
async fn configured(live: &Live, path: &str, remote: &str, push: bool) -> Result<Remote> {
    let named = arguments::remote("remote", remote)?;
    if named != Remote::Other {
        return Ok(named);
    }
    let arguments: &[&str] =
        if push { &["remote", "get-url", "--push", "--", remote] } else { &["remote", "get-url", "--", remote] };
    let output = Job::at("remote", path, arguments)?.output(live, None).await?;
    arguments::remote("the URL of the remote", String::from_utf8_lossy(&output.stdout).trim())
}

/// Pushes or pulls.
async fn sync(live: &Live, request: GitSyncRequest, push: bool) -> Result<GitSyncResponse> {
    let (operation, remote) = (if push { "push" } else { "pull" }, request.remote.as_deref().unwrap_or("origin"));
    arguments::remote("remote", remote)?;
    let branch = request.branch.as_deref().map(|branch| arguments::name("branch", branch)).transpose()?;
    let set_upstream = request.set_upstream == Some(true);
    let mut words = vec![operation];
    if set_upstream {
        words.push("--set-upstream");
    }
    words.extend(["--", remote]);
    match branch {
        Some(branch) => words.push(branch),
        None if set_upstream && push => words.push("HEAD"),
        None if set_upstream => return Err(Error::invalid("set_upstream of a pull needs branch")),
        None => {}
    }
    let place = match request.auth {
        Some(_) => configured(live, &request.path, remote, push).await?,
        None => Remote::Other,
    };
    let job = Job::at(operation, &request.path, &words)?.with_remote(request.auth, &place)?;
    let hidden = job.credentials.as_ref().map(|credentials| credentials.hidden.clone()).unwrap_or_default();
    let output = job.output(live, None).await?;
    // A push says everything on stderr; a pull says what it fetched there, and what became of it on stdout.
    let words = [&output.stderr[..], &output.stdout].concat();
    let said = ExecOutput { stderr: words, ..ExecOutput::default() };
    Ok(GitSyncResponse { summary: failure::words(&said, &hidden) })
}

/// Adds files to the index.
async fn add(live: &Live, path: &str, files: Option<&[String]>) -> Result<()> {
    match files {
        None => Job::at("add", path, &["add", "--all"])?.done(live).await,
        Some(files) => {
            arguments::files(files)?;
            let mut words = vec!["add", "--"];
            words.extend(files.iter().map(String::as_str));
            Job::at("add", path, &words)?.done(live).await
        }
    }
}

#[async_trait]
impl LiveGit for Live {
    async fn git_clone(&self, request: GitCloneRequest) -> Result<GitCloneResponse> {
        let remote = arguments::remote("url", &request.url)?;
        let path = arguments::path("path", &request.path)?;
        let depth = request.depth.map(arguments::depth).transpose()?;
        let mut words = vec!["clone"];
        if let Some(branch) = &request.branch {
            words.extend(["--branch", arguments::name("branch", branch)?]);
        }
        if let Some(depth) = &depth {
            words.extend(["--depth", depth]);
        }
        words.extend(["--", &request.url, &path]);
        Job::new("clone", &words).with_remote(request.auth, &remote)?.done(self).await?;
        Ok(GitCloneResponse { path })
    }

    async fn git_status(&self, path: &str, memory: &dyn Memory) -> Result<GitStatus> {
        let job = Job::at("status", path, &["status", "--porcelain=v2", "--branch", "-z"])?;
        parse::status(&job.reading(MAX_ANSWER).whole(self, memory).await?).map_err(unreadable)
    }

    async fn git_add(&self, request: GitAddRequest) -> Result<()> {
        add(self, &request.path, request.files.as_deref()).await
    }

    async fn git_commit(&self, request: GitCommitRequest) -> Result<GitCommitResponse> {
        arguments::message(&request.message)?;
        let author = arguments::author(request.author_name.as_deref(), request.author_email.as_deref())?;
        let add_all = request.add_all == Some(true);
        if add_all && request.files.is_some() {
            return Err(Error::invalid("add_all and files do not go together"));
        }
        if add_all || request.files.is_some() {
            add(self, &request.path, request.files.as_deref()).await?;
        }
        let mut job = Job::at("commit", &request.path, &["commit", "--quiet", "--file=-"])?;
        job.stdin = Some(Secret::from(request.message));
        if let Some((name, email)) = author {
            let names = [
                ("GIT_AUTHOR_NAME", name),
                ("GIT_COMMITTER_NAME", name),
                ("GIT_AUTHOR_EMAIL", email),
                ("GIT_COMMITTER_EMAIL", email),
            ];
            job.envs = names.map(|(variable, value)| (variable, value.to_owned())).to_vec();
        }
        job.done(self).await?;
        let head = Job::at("rev-parse", &request.path, &["rev-parse", "--verify", "HEAD"])?.output(self, None).await?;
        Ok(GitCommitResponse { sha: parse::sha(&head.stdout).map_err(unreadable)? })
    }

    async fn git_push(&self, request: GitSyncRequest) -> Result<GitSyncResponse> {
        sync(self, request, true).await
    }

    async fn git_pull(&self, request: GitSyncRequest) -> Result<GitSyncResponse> {
        sync(self, request, false).await
    }

    async fn git_branches(&self, path: &str, memory: &dyn Memory) -> Result<GitBranchList> {
        let format = format!("--format={}", parse::BRANCHES);
        let job = Job::at("branch", path, &["for-each-ref", &format, "refs/heads/"])?;
        let branches = job.reading(MAX_ANSWER).whole(self, memory).await?;
        // It fails without a word when HEAD is detached.
        let head = Job::at("branch", path, &["symbolic-ref", "--quiet", "HEAD"])?.run(self, None).await?;
        parse::branches(&branches, &head.stdout).map_err(unreadable)
    }

    async fn git_branch(&self, request: GitBranchRequest) -> Result<()> {
        let name = arguments::name("name", &request.name)?;
        let force = request.force == Some(true);
        let words: &[&str] = match (request.action.unwrap_or_default(), force) {
            (GitBranchRequestAction::Create, false) => &["branch", "--", name],
            (GitBranchRequestAction::Create, true) => &["branch", "--force", "--", name],
            (GitBranchRequestAction::Delete, false) => &["branch", "--delete", "--", name],
            (GitBranchRequestAction::Delete, true) => &["branch", "--delete", "--force", "--", name],
        };
        Job::at("branch", &request.path, words)?.done(self).await
    }

    async fn git_checkout(&self, request: GitCheckoutRequest) -> Result<()> {
        let job = if request.create == Some(true) {
            let name = arguments::name("ref", &request.reference)?;
            Job::at("checkout", &request.path, &["checkout", "--quiet", "-b", name, "--"])?
        } else {
            let revision = arguments::revision("ref", &request.reference)?;
            Job::at("checkout", &request.path, &["checkout", "--quiet", revision, "--"])?
        };
        job.done(self).await
    }

    async fn git_log(&self, path: &str, limit: Option<u32>, memory: &dyn Memory) -> Result<Vec<GitCommit>> {
        let count = format!("--max-count={}", arguments::limit(limit)?);
        // A repository without a commit has no log, which git calls a failure.
        let head = Job::at("log", path, &["rev-parse", "--quiet", "--verify", "HEAD"])?.run(self, None).await?;
        if head.exit.code == 1 && head.stdout.is_empty() {
            return Ok(Vec::new());
        }
        let format = format!("--format={}", parse::LOG);
        let job = Job::at("log", path, &["log", "-z", "--no-show-signature", &count, &format, "--"])?;
        parse::log(&job.reading(MAX_ANSWER).whole(self, memory).await?).map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment_of(sandbox: &[(&str, &str)], ssh: Option<&'static str>) -> BTreeMap<String, String> {
        environment(sandbox.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(), ssh)
    }

    #[test]
    fn variables_that_change_what_a_request_means_are_dropped() {
        let sandbox = [
            ("PATH", "/bin"),
            ("GIT_DIR", "/x"),
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_PARAMETERS", "x"),
            ("GIT_ASKPASS", "/x"),
            ("SSH_ASKPASS", "/x"),
            ("GIT_TRACE_CURL", "/x"),
            ("GIT_AUTHOR_NAME", "me"),
            ("LC_ALL", "de_DE"),
            ("GIT_TERMINAL_PROMPT", "1"),
        ];
        let envs = environment_of(&sandbox, None);
        let kept = |name: &str| envs.get(name).map(String::as_str);
        assert_eq!((kept("PATH"), kept("GIT_AUTHOR_NAME"), kept("LC_ALL")), (Some("/bin"), Some("me"), Some("C")));
        for name in
            ["GIT_DIR", "GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS", "GIT_ASKPASS", "SSH_ASKPASS", "GIT_TRACE_CURL"]
        {
            assert_eq!(kept(name), None, "{name}");
        }
        assert_eq!(kept("GIT_TERMINAL_PROMPT"), Some("0"));
        assert_eq!(kept("GIT_SSH_COMMAND"), Some(credentials::SSH));
    }

    #[test]
    fn a_sandboxs_own_ssh_is_kept_until_a_key_is_given() {
        let own = [("GIT_SSH", "/own"), ("GIT_SSH_COMMAND", "own -v")];
        assert_eq!(environment_of(&own, None)["GIT_SSH_COMMAND"], "own -v");
        assert!(!environment_of(&own[..1], None).contains_key("GIT_SSH_COMMAND"));
        let with_key = environment_of(&own, Some("ssh -x"));
        assert_eq!((with_key.get("GIT_SSH"), with_key["GIT_SSH_COMMAND"].as_str()), (None, "ssh -x"));
    }

    #[test]
    fn a_request_is_an_argument_or_input_of_git() {
        let job = Job::at("add", "-x", &["add", "--", "-f"]).unwrap();
        assert_eq!(job.arguments, ["-C", "-x", "add", "--", "-f"]);
        assert!(Job::at("add", "", &[]).is_err() && Job::at("add", "a\0", &[]).is_err());
    }
}
