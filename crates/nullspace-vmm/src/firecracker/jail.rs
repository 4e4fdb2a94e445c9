//! The jail of one VMM: its folder, the files in it, and the arguments it is started with.
//!
//! ```text
//!   jailed (root)                                      plain
//!   <work>/<exec name>/<id>/root/   is the VMM's /     <work>/vm/   is the VMM's working folder
//!       root.ext4    its disk                              the same, and
//!       kernel, initramfs, state, memory                   links to the shared files
//!                    bound read-only in its mount
//!                    namespace
//!       api.sock, v.sock
//! ```
//!
//! A jailed VMM is started in two steps: `sh`, PID 1 of a PID namespace, runs the jailer, waits and passes its status on;
//! the jailer becomes Firecracker under a uid of its own. That change of uid clears the parent-death signal. But PID 1
//! stays root and keeps the signal, and when PID 1 dies the kernel kills all others in the namespace, whoever they are.
//! A VMM without jailer keeps its uid and the signal.
//!
//! All names that end up in a snapshot (disk and vsock) are relative, so they mean the VMM's own files wherever and
//! however the snapshot is restored.

use std::ffi::{CString, OsString};
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::folder::Folder;
use crate::VmmError;
use crate::cgroups::{Cgroups, Limits};
use crate::process::{Bind, Launch, Namespaces};

pub(super) const API_SOCKET: &str = "api.sock";
pub(super) const VSOCK: &str = "v.sock";
pub(super) const DISK: &str = "root.ext4";
const PLAIN_FOLDER: &str = "vm";
/// PID 1 of a jailed VMM's namespace: it runs its arguments, waits, and passes the status on.
const HOLDER: [&str; 4] = ["/bin/sh", "-c", "\"$@\"; exit $?", "nullspace-vm"];

/// The folder of one VMM, being filled.
#[derive(Debug)]
pub(super) struct Jail {
    top: PathBuf,
    root: PathBuf,
    folder: Folder,
    uid: Option<u32>,
    shared: Vec<Shared>,
}

/// A file from outside.
#[derive(Debug)]
struct Shared {
    from: PathBuf,
    to: PathBuf,
    writable: bool,
}

/// The owner of a file before it was lent to a machine.
#[derive(Debug)]
pub(super) struct Lent {
    path: PathBuf,
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Lent {
    /// Gives the file back.
    pub(super) fn give_back(&self) {
        let given = chown(&self.path, Some(self.uid), Some(self.gid))
            .and_then(|()| fs::set_permissions(&self.path, Permissions::from_mode(self.mode)));
        if let Err(error) = given
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "a disk could not be given back and still belongs to its machine's uid");
        }
    }
}

impl Jail {
    /// Makes the folder in `work`; with `uid` as the jailer will expect it.
    pub(super) fn make(work: &Path, exec_name: &str, id: &str, uid: Option<u32>) -> Result<Self, VmmError> {
        let (top, root) = match uid {
            Some(_) => (work.join(exec_name), work.join(exec_name).join(id).join("root")),
            None => (work.join(PLAIN_FOLDER), work.join(PLAIN_FOLDER)),
        };
        let context = || format!("make {}", root.display());
        fs::create_dir(&top).map_err(|source| VmmError::Io { context: context(), source })?;
        let made = fs::create_dir_all(&root).map_err(|source| VmmError::Io { context: context(), source });
        match made.and_then(|()| Folder::open(&root)) {
            Ok(folder) => Ok(Self { top, root, folder, uid, shared: Vec::new() }),
            Err(error) => {
                remove(&top);
                Err(error)
            }
        }
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns the host's path of `name`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns the folder to remove when the machine is gone.
    pub(super) fn top(&self) -> &Path {
        &self.top
    }

    /// Shows a file of the service under `name`, read-only when jailed. It must be readable by all.
    pub(super) fn share(&mut self, from: &Path, name: &str) -> Result<(), VmmError> {
        self.show(from, name, false)
    }

    fn show(&mut self, from: &Path, name: &str, writable: bool) -> Result<(), VmmError> {
        let to = self.path(name);
        let failed = |source| VmmError::Io { context: format!("show {} to a machine", from.display()), source };
        if self.uid.is_some() {
            // A place to bind it to.
            OpenOptions::new().write(true).create_new(true).open(&to).map_err(failed)?;
            self.shared.push(Shared { from: from.to_owned(), to, writable });
        } else {
            let from = fs::canonicalize(from).map_err(failed)?;
            std::os::unix::fs::symlink(from, &to).map_err(failed)?;
        }
        Ok(())
    }

    /// The machine's uid, when it is jailed.
    pub(super) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Makes a file, which the service has put there, the machine's own.
    pub(super) fn own(&self, file: &fs::File) -> io::Result<()> {
        match self.uid {
            Some(uid) => std::os::unix::fs::fchown(file, Some(uid), Some(uid)),
            None => Ok(()),
        }
    }

    /// Lends a caller's disk under `name`. To be given back when the machine is gone.
    pub(super) fn lend(&mut self, disk: &Path, name: &str) -> Result<Option<Lent>, VmmError> {
        self.show(disk, name, true)?;
        let Some(uid) = self.uid else { return Ok(None) };
        let failed = |source| VmmError::Io { context: format!("lend {} to a machine", disk.display()), source };
        let before = fs::symlink_metadata(disk).map_err(failed)?;
        if !before.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let lent = Lent { path: disk.to_owned(), uid: before.uid(), gid: before.gid(), mode: before.mode() & 0o7777 };
        chown(disk, Some(uid), Some(uid)).map_err(failed)?;
        Ok(Some(lent))
    }

    /// Returns the VMM's process, ready to start. `jailer` must be given exactly when the jail was made with a uid.
    pub(super) fn launch(
        &self,
        binary: &Path,
        jailer: Option<(&Path, Option<&Cgroups>)>,
        id: &str,
        limits: Limits,
        largest_file: u64,
        output: OwnedFd,
    ) -> io::Result<Launch> {
        let own = ["--id", id, "--api-sock", API_SOCKET, "--level", "Warning"];
        let mut launch = Launch {
            program: binary.to_owned(),
            args: own.iter().map(OsString::from).collect(),
            directory: self.root.clone(),
            output,
            inherit: Vec::new(),
            network: None,
            namespaces: Namespaces::Host,
            confinement: None,
        };
        let (Some((jailer, cgroups)), Some(uid)) = (jailer, self.uid) else { return Ok(launch) };
        // <work> of `<work>/<exec name>`, which the jailer appends by itself.
        let base = self.top.parent().unwrap_or(&self.top);
        let [program, holder @ ..] = HOLDER;
        let uid = uid.to_string();
        let mut args: Vec<OsString> = holder.map(OsString::from).to_vec();
        args.push(jailer.into());
        args.extend(["--id", id, "--exec-file"].map(OsString::from));
        args.push(binary.into());
        args.extend(["--uid", &uid, "--gid", &uid, "--chroot-base-dir"].map(OsString::from));
        args.push(base.into());
        args.extend(["--resource-limit".into(), format!("fsize={largest_file}").into()]);
        args.extend(cgroups.iter().flat_map(|cgroups| cgroups.jailer_args(limits)).map(OsString::from));
        args.push("--".into());
        // The jailer hands the id on itself.
        args.extend(own.iter().skip(2).map(OsString::from));
        launch.program = program.into();
        launch.args = args;
        launch.directory = "/".into();
        launch.namespaces = Namespaces::Bound(self.shared.iter().map(Shared::bind).collect::<io::Result<_>>()?);
        Ok(launch)
    }
}

impl Shared {
    fn bind(&self) -> io::Result<Bind> {
        let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
        Ok(Bind { from: c_path(&self.from)?, to: c_path(&self.to)?, writable: self.writable })
    }
}

/// Removes a machine's folder. Nothing writes to it any more, and links in it are not followed.
pub(super) fn remove(top: &Path) {
    match fs::remove_dir_all(top) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %top.display(), "a machine's folder was not removed");
        }
        _ => {}
    }
}

/// Makes sure that VMMs, which have uids of their own, can read a snapshot's file.
pub(super) fn readable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o004 == 0 {
        fs::set_permissions(path, Permissions::from_mode((mode & 0o7777) | 0o444))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_machine_sees_links_in_a_folder_of_its_own() {
        let work = tempfile::tempdir().unwrap();
        let mut jail = Jail::make(work.path(), "firecracker", "m1", None).unwrap();
        fs::write(work.path().join("kernel"), "elf").unwrap();
        jail.share(&work.path().join("kernel"), "kernel").unwrap();
        assert_eq!(fs::read(jail.path("kernel")).unwrap(), b"elf");
        remove(jail.top());
        assert!(!jail.top().exists() && work.path().join("kernel").exists());
    }
}
