//! From a request to everything that a child needs.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use nullspace_guest::message::{Exec, Failure, FailureKind};

use crate::users::{Account, Accounts};

/// Docker's default.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The folder that users' code is expected in; the only one that is made when it is missing.
pub(crate) const WORKSPACE: &str = "/workspace";
/// More of /etc/passwd or /etc/group than this is not read.
const MAX_ACCOUNT_FILE: u64 = 4 * 1024 * 1024;

/// A process, ready to be started: nothing in it is looked up any more.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) program: CString,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) account: Account,
    /// Whether it is to be the first process of a PID namespace of its own.
    pub(crate) first: bool,
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

fn c_string(what: &str, text: String) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| failure(FailureKind::Invalid, format!("{what} contains a NUL byte.")))
}

/// Resolves user, environment, program and directory inside the root.
pub(crate) fn prepare(exec: &Exec) -> Result<Plan, Failure> {
    let account = accounts()?.resolve(exec.user.as_deref().unwrap_or_default())?;
    let envs = environment(&exec.envs, &account)?;
    let name = match exec.argv.first() {
        Some(name) if !name.is_empty() => name,
        _ => return Err(failure(FailureKind::Invalid, "No program is named.")),
    };
    let cwd = exec.cwd.as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    let cwd = enterable(cwd, exec.make_cwd)?;
    let path = envs.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let program = find_program(name, path, Path::new(cwd))?;
    Ok(Plan {
        program: c_string("The program", program)?,
        argv: exec.argv.iter().map(|arg| c_string("An argument", arg.clone())).collect::<Result<_, _>>()?,
        envp: envs
            .into_iter()
            .map(|(name, value)| c_string("The environment", format!("{name}={value}")))
            .collect::<Result<_, _>>()?,
        cwd: c_string("The working directory", cwd.to_owned())?,
        account,
        first: exec.first,
    })
}

/// The image's users and groups, as they are now.
pub(crate) fn accounts() -> Result<Accounts, Failure> {
    Ok(Accounts { passwd: account_file("/etc/passwd")?, group: account_file("/etc/group")? })
}

fn account_file(path: &str) -> Result<String, Failure> {
    let mut raw = Vec::new();
    // A FIFO or device of that name must not hold the agent up: only regular files are opened.
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(failure(FailureKind::Internal, format!("{path} is not a regular file."))),
        Err(_) => return Ok(String::new()),
    }
    let read = fs::File::open(path).and_then(|file| file.take(MAX_ACCOUNT_FILE).read_to_end(&mut raw));
    match read {
        Ok(_) => Ok(String::from_utf8_lossy(&raw).into_owned()),
        Err(error) => Err(failure(FailureKind::Internal, format!("{path} cannot be read: {error}."))),
    }
}

fn environment(asked: &BTreeMap<String, String>, account: &Account) -> Result<BTreeMap<String, String>, Failure> {
    if let Some(name) = asked.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(failure(FailureKind::Invalid, format!("`{name}` is no name for an environment variable.")));
    }
    let mut envs = asked.clone();
    let defaults = [
        ("HOME", account.home.as_str()),
        ("USER", account.name.as_str()),
        ("LOGNAME", account.name.as_str()),
        ("PATH", DEFAULT_PATH),
        ("TERM", "xterm"),
    ];
    for (name, value) in defaults {
        envs.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    Ok(envs)
}

/// The directory to enter: `cwd`, made when it is missing and may be made, or `/` for a default that cannot be one.
fn enterable(cwd: &str, make: bool) -> Result<&str, Failure> {
    if !cwd.starts_with('/') {
        return Err(failure(FailureKind::Invalid, format!("Working directory `{cwd}` is not an absolute path.")));
    }
    let mut found = fs::metadata(cwd);
    let missing = matches!(&found, Err(error) if error.kind() == io::ErrorKind::NotFound);
    if missing && (make || cwd == WORKSPACE) {
        // As root, whoever is to run in it, and inside the root: the agent is confined to it.
        let made = fs::DirBuilder::new().mode(0o755).recursive(make).create(cwd);
        found = made.and_then(|()| fs::metadata(cwd));
    }
    let problem = match found {
        Ok(meta) if meta.is_dir() => return Ok(cwd),
        // Nobody chose it: the image has something else of that name.
        _ if make && cwd == WORKSPACE => return Ok("/"),
        Ok(_) => "is not a directory".to_owned(),
        Err(error) if missing && !make && error.kind() == io::ErrorKind::NotFound => "does not exist".to_owned(),
        Err(error) if missing => {
            let link = fs::symlink_metadata(cwd).is_ok_and(|meta| meta.is_symlink());
            let why = if link { "it is a link to nothing".to_owned() } else { error.to_string() };
            format!("does not exist and cannot be made: {why}")
        }
        Err(error) => format!("cannot be entered: {error}"),
    };
    Err(failure(FailureKind::WorkdirNotFound, format!("Working directory `{cwd}` {problem}.")))
}

/// The file to run. A name with a slash is taken relative to `cwd`; others are looked up in `path`, whose relative
/// entries mean `cwd` too, as execvp(3) has it.
fn find_program(name: &str, path: &str, cwd: &Path) -> Result<String, Failure> {
    let not_executable =
        |file: &str, why: &str| Err(failure(FailureKind::NotExecutable, format!("`{file}` cannot be run: {why}.")));
    if name.contains('/') {
        return match fs::metadata(cwd.join(name)) {
            Ok(meta) if meta.is_dir() => not_executable(name, "it is a directory"),
            Ok(meta) if meta.permissions().mode() & 0o111 == 0 => not_executable(name, "it is not marked executable"),
            Ok(_) => Ok(name.to_owned()),
            Err(_) if name.starts_with('/') => {
                Err(failure(FailureKind::ProgramNotFound, format!("Program `{name}` does not exist.")))
            }
            Err(_) => {
                let message = format!("Program `{name}` does not exist in the working directory `{}`.", cwd.display());
                Err(failure(FailureKind::ProgramNotFound, message))
            }
        };
    }
    let mut without_mode = None;
    for folder in path.split(':') {
        let file = format!("{}/{name}", if folder.is_empty() { "." } else { folder });
        match fs::metadata(cwd.join(&file)) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => return Ok(file),
            Ok(meta) if meta.is_file() => without_mode = without_mode.or(Some(file)),
            _ => {}
        }
    }
    match without_mode {
        Some(file) => not_executable(&file, "it is not marked executable"),
        None => {
            Err(failure(FailureKind::ProgramNotFound, format!("Program `{name}` is in no folder of PATH ({path}).")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_execvp_does() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let make = |name: &str, mode: u32| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), "").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        make("a/tool", 0o644);
        make("b/tool", 0o755);
        make("a/only", 0o644);
        make("here", 0o700);
        fs::create_dir_all(at("a/folder")).unwrap();
        let (a, b) = (at("a").display().to_string(), at("b").display().to_string());
        let path = format!("{a}:{b}:/nowhere");
        let found = |name: &str, path: &str| find_program(name, path, root.path()).map_err(|failure| failure.kind);
        // A file without the bit does not hide a later one.
        assert_eq!(found("tool", &path), Ok(format!("{b}/tool")));
        assert_eq!(found("only", &path), Err(FailureKind::NotExecutable));
        assert_eq!(found("folder", &path), Err(FailureKind::ProgramNotFound));
        assert_eq!(found("none", &path), Err(FailureKind::ProgramNotFound));
        // An empty entry and a relative one mean the working directory.
        assert_eq!(found("here", ":/nowhere"), Ok("./here".to_owned()));
        assert_eq!(found("tool", "b"), Ok("b/tool".to_owned()));
        assert_eq!(found("./here", &path), Ok("./here".to_owned()));
        assert_eq!(found("b/tool", ""), Ok("b/tool".to_owned()));
        assert_eq!(found("a/only", ""), Err(FailureKind::NotExecutable));
        assert_eq!(found("./a", ""), Err(FailureKind::NotExecutable));
        assert_eq!(found("./none", ""), Err(FailureKind::ProgramNotFound));
    }

    #[test]
    fn the_environment_gets_defaults_and_keeps_what_was_asked() {
        let account = Account { uid: 5, gid: 5, groups: vec![], name: "app".into(), home: "/home/app".into() };
        let asked = BTreeMap::from([("HOME".to_owned(), "/elsewhere".to_owned()), ("A".to_owned(), "1=2".to_owned())]);
        let envs = environment(&asked, &account).unwrap();
        let expected = [
            ("A", "1=2"),
            ("HOME", "/elsewhere"),
            ("LOGNAME", "app"),
            ("PATH", DEFAULT_PATH),
            ("TERM", "xterm"),
            ("USER", "app"),
        ];
        assert_eq!(envs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
        let bad = BTreeMap::from([("A=B".to_owned(), String::new())]);
        assert_eq!(environment(&bad, &account).unwrap_err().kind, FailureKind::Invalid);
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let kind = |exec: Exec| prepare(&exec).map(|_| ()).map_err(|failure| failure.kind);
        let argv = |argv: &[&str]| argv.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        assert_eq!(kind(Exec::default()), Err(FailureKind::Invalid));
        assert_eq!(kind(Exec { argv: argv(&[""]), ..Exec::default() }), Err(FailureKind::Invalid));
        assert_eq!(kind(Exec { argv: argv(&["/bin/sh", "a\0b"]), ..Exec::default() }), Err(FailureKind::Invalid));
        let in_folder = |cwd: &str| Exec { argv: argv(&["/bin/sh"]), cwd: Some(cwd.into()), ..Exec::default() };
        assert_eq!(kind(in_folder("relative")), Err(FailureKind::Invalid));
        assert_eq!(kind(in_folder("/does/not/exist")), Err(FailureKind::WorkdirNotFound));
        assert_eq!(kind(in_folder("/bin/sh")), Err(FailureKind::WorkdirNotFound));
        assert_eq!(kind(in_folder("/")), Ok(()));
    }

    #[test]
    fn a_working_directory_is_made_where_that_is_asked() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        fs::create_dir(at("there")).unwrap();
        std::os::unix::fs::symlink("there", at("link")).unwrap();
        // path, whether it may be made, what is wrong with it
        let cases = [
            ("missing", false, Err("does not exist.")),
            ("made", true, Ok(())),
            ("parents/made/too", true, Ok(())),
            ("there", true, Ok(())),
            ("link", true, Ok(())),
            ("link/below", true, Ok(())),
            ("file", true, Err("is not a directory")),
            ("file", false, Err("is not a directory")),
            ("file/below", true, Err("cannot be entered")),
            ("dangling", true, Err("it is a link to nothing")),
            ("dangling", false, Err("does not exist.")),
        ];
        for (name, make, expected) in cases {
            let path = at(name);
            match (enterable(&path, make), expected) {
                (Ok(entered), Ok(())) => {
                    assert_eq!(entered, path);
                    let mode = fs::metadata(&path).unwrap().permissions().mode();
                    assert_eq!(mode & 0o022, 0, "{name}: {mode:o}");
                }
                (Err(failure), Err(part)) => {
                    assert_eq!(failure.kind, FailureKind::WorkdirNotFound, "{name}");
                    assert!(failure.message.contains(part) && failure.message.contains(&path), "{name}: {failure}");
                }
                (got, expected) => panic!("{name}: {got:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_relative_program_that_is_missing_is_told_with_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let failure = find_program("./app", DEFAULT_PATH, root.path()).unwrap_err();
        assert!(failure.message.contains("`./app`"), "{failure}");
        assert!(failure.message.contains(root.path().to_str().unwrap()), "{failure}");
    }
}
