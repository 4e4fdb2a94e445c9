//! A real PostgreSQL server on a Unix socket of its own: started by a test, ended with it.
//!
//! ```text
//!   target/tmp/postgresql/N/   lock    held as long as the server is in use; without it, the folder is what a killed test left
//!                              data    initdb's, made anew
//!                              .s.PGSQL.5432
//! ```
//! The programs are those of Debian's package `postgresql`. A server does not run as root: as root, tests start it as `postgres`.
//! It does not wait for the disk (`fsync=off`): no test cuts the power.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// From the start to the first answer, on a busy machine.
const START: Duration = Duration::from_secs(60);
const SLOTS: u32 = 64;
/// The longest path of a Unix socket, bytes.
const SOCKET: usize = 107;
/// The user that owns the database, and its password.
const USER: &str = "nullspace";
/// No log and no error may show it.
pub(crate) const PASSWORD: &str = "canary-postgresql-secret";

/// A server, running or ended. Dropped, it is ended.
#[derive(Debug)]
pub(crate) struct Postgres {
    dir: PathBuf,
    programs: PathBuf,
    server: Option<Child>,
    _lock: File,
}

impl Postgres {
    /// Makes a new server, which asks for no password, and starts it. `None` when tests with servers are not wanted.
    pub(crate) fn start() -> Option<Postgres> {
        Postgres::start_with("trust")
    }

    /// Makes a new server that authenticates clients by this method of its own, and starts it.
    pub(crate) fn start_with(auth: &str) -> Option<Postgres> {
        if std::env::var_os("NULLSPACE_TEST_COMPLETE").is_none() {
            println!("skipped: the tests on a real PostgreSQL server run when NULLSPACE_TEST_COMPLETE is set");
            return None;
        }
        let (dir, lock) = slot();
        let mut postgres = Postgres { programs: programs(), server: None, _lock: lock, dir };
        postgres.initialise(auth);
        postgres.run();
        Some(postgres)
    }

    /// The address of a database of the server; it must be there.
    pub(crate) fn url(&self, database: &str) -> String {
        let host: String = self.dir.to_str().expect("a path in UTF-8").replace('%', "%25").replace('/', "%2F");
        format!("postgres://{USER}:{PASSWORD}@{host}/{database}")
    }

    /// The folder of all databases.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// Ends the server at once, as a crash does; connections break.
    pub(crate) fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        // Its immediate shutdown, which leaves no shared memory behind as SIGKILL does.
        let _ = kill_process(pid, Signal::QUIT);
        let _ = server.wait();
    }

    /// Starts the server again on its data.
    pub(crate) fn run(&mut self) {
        let log = File::options().append(true).create(true).open(self.dir.join("log")).expect("the server's log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.dir).args(["-c", "listen_addresses="]);
        for setting in ["fsync=off", "full_page_writes=off", "max_connections=300", "autovacuum=off"] {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::null()).stderr(log);
        self.server = Some(command.spawn().expect("start postgres"));
        let began = Instant::now();
        loop {
            if self.sql("SELECT 1").is_ok() {
                return;
            }
            let ended = self.server.as_mut().and_then(|server| server.try_wait().expect("wait for the server"));
            assert!(ended.is_none() && began.elapsed() < START, "the server does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a statement in the database `postgres`.
    pub(crate) fn sql(&self, statement: &str) -> Result<(), String> {
        let output = Command::new(self.programs.join("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", "postgres", "-c", statement, "-h"])
            .arg(&self.dir)
            .env("PGPASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .output()
            .expect("run psql");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn initialise(&self, auth: &str) {
        let password = self.dir.join("password");
        fs::write(&password, PASSWORD).expect("write the password");
        fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).expect("let the server read it");
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(self.data()).args(["-U", USER, "--no-sync", "--encoding=UTF8"]);
        // An order of texts that is not that of their bytes.
        initdb.args(["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"]);
        initdb.arg(format!("--auth={auth}")).arg("--pwfile").arg(&password);
        let output = initdb.output().expect("run initdb");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "initdb failed (may its user reach {}?): {said}", self.dir.display());
    }

    /// A program of the server, as its user, which ends when the calling thread does.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if let Some((user, group)) = server_user() {
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
        }
        command.args(["--pdeathsig", "QUIT"]).arg(self.programs.join(program)).stdin(Stdio::null());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(&self.dir);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(self.data());
    }
}

/// The user and group that a server runs as instead of root.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // Debian's package makes the user.
    let number = |option: &str| {
        let output = Command::new("id").args([option, "postgres"]).output().expect("run id");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("there is a user postgres")
    };
    Some((number("-u"), number("-g")))
}

/// The folder of the newest server that is installed.
fn programs() -> PathBuf {
    let version = |dir: &Path| dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = installed.filter(|dir| dir.join("bin/postgres").is_file()).max_by_key(|dir| version(dir));
    newest.expect("no PostgreSQL server below /usr/lib/postgresql: install Debian's package postgresql").join("bin")
}

/// A folder that no other test uses, empty but for its lock.
fn slot() -> (PathBuf, File) {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgresql");
    for number in 0..SLOTS {
        let dir = all.join(number.to_string());
        fs::create_dir_all(&dir).expect("make the server's folder");
        let lock = File::create(dir.join("lock")).expect("make the lock");
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => continue,
            Err(error) => panic!("lock {}: {error}", dir.display()),
        }
        let socket = dir.join(".s.PGSQL.5432");
        assert!(socket.as_os_str().len() <= SOCKET, "{}: too long for the path of a socket", socket.display());
        empty(&dir).expect("empty the server's folder");
        if let Some((user, group)) = server_user() {
            chown(&dir, Some(user), Some(group)).expect("give the folder to the server's user");
        }
        return (dir, lock);
    }
    panic!("{SLOTS} servers are in use");
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == "lock" {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}
