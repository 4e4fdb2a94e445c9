//! A folder as the context of a Dockerfile's build: read, without what its ignore file names, and uploaded.
//!
//! ```text
//!   DIR ── walk ── .dockerignore ── SHA-256 of each file ── preflight ──> service: which are missing
//!                                                               └──────── these are uploaded
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nullspace_api::{
    TemplateBlobPreflightFile, TemplateBlobPreflightRequest, TemplateBuildContext, TemplateBuildContextFile,
    TemplateContextEntryType as Kind,
};
use nullspace_buildkit::{Source, Tree, not_ignored};
use nullspace_client::Client;
use sha2::{Digest, Sha256};

/// Most entries of a context, as the service has it.
const MAX_ENTRIES: usize = 100_000;
/// Largest ignore file, bytes.
const MAX_IGNORE: u64 = 1 << 20;
/// Files that the service is asked about at a time.
const ASKED: usize = 1000;

/// A file or folder of the context.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    /// Size of a file, bytes; `None` for a folder.
    bytes: Option<u64>,
    /// Permissions in octal digits.
    mode: String,
}

/// The entries of a folder that are sent, by their paths in it. `dockerfile` is the Dockerfile's path in the folder.
fn entries(folder: &Path, dockerfile: &str) -> anyhow::Result<BTreeMap<String, Entry>> {
    let (mut found, mut links) = (BTreeMap::new(), BTreeSet::new());
    let mut tree = Tree::default();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((inside, prefix)) = folders.pop() {
        let read = fs::read_dir(&inside).with_context(|| format!("read {}", inside.display()))?;
        for entry in read {
            let entry = entry.with_context(|| format!("read {}", inside.display()))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else { bail!("{}: its name is not UTF-8", path.display()) };
            let name = format!("{prefix}{name}");
            let metadata = entry.metadata().with_context(|| format!("read {}", path.display()))?;
            let mode = format!("{:04o}", metadata.permissions().mode() & 0o7777);
            if metadata.is_dir() {
                folders.push((path.clone(), format!("{name}/")));
                tree.directory(&name, None)?;
                found.insert(name, Entry { path, bytes: None, mode });
            } else {
                if !metadata.is_file() {
                    links.insert(name.clone());
                }
                let bytes = metadata.len();
                tree.file(&name, None, Source::File { path: path.clone(), bytes })?;
                found.insert(name, Entry { path, bytes: Some(bytes), mode });
            }
        }
    }
    if let Some((name, ignore)) = ignore_file(folder, dockerfile)? {
        let kept: BTreeSet<String> = not_ignored(&tree, &ignore).context(name.clone())?.into_iter().collect();
        found.retain(|path, _| *path == name || kept.contains(path));
    }
    if let Some(link) = links.iter().find(|link| found.contains_key(*link)) {
        bail!(
            "{link} in the context is neither a file nor a folder: name it in .dockerignore, or copy what it leads to"
        );
    }
    if found.len() > MAX_ENTRIES {
        bail!(
            "the context has {} entries, more than {MAX_ENTRIES}: name what is not needed in .dockerignore",
            found.len()
        );
    }
    Ok(found)
}

/// Name and text of the Dockerfile's own ignore file, else of the context's.
fn ignore_file(folder: &Path, dockerfile: &str) -> anyhow::Result<Option<(String, String)>> {
    for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
        let file = match fs::File::open(folder.join(&name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.with_context(|| format!("read {name}"))?,
        };
        let mut text = String::new();
        file.take(MAX_IGNORE).read_to_string(&mut text).with_context(|| format!("read {name}"))?;
        return Ok(Some((name, text)));
    }
    Ok(None)
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut file = fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Uploads what the service does not have of a folder. `dockerfile` is the Dockerfile's path in the folder.
pub(crate) async fn upload(client: &Client, folder: &Path, dockerfile: &str) -> anyhow::Result<TemplateBuildContext> {
    let entries: Vec<(String, Entry)> = entries(folder, dockerfile)?.into_iter().collect();
    let (mut files, mut sent) = (Vec::with_capacity(entries.len()), BTreeSet::new());
    for some in entries.chunks(ASKED) {
        let mut asked = Vec::with_capacity(some.len());
        for (path, entry) in some {
            let sha256 = entry.bytes.map(|_| sha256(&entry.path)).transpose()?;
            let (path, mode) = (path.clone(), Some(entry.mode.clone()));
            let (entry_type, size_bytes) = (if entry.bytes.is_some() { Kind::File } else { Kind::Dir }, entry.bytes);
            asked.push(TemplateBlobPreflightFile { path, entry_type, mode, sha256, size_bytes, force_upload: None });
        }
        let answer = client.preflight_blobs(&TemplateBlobPreflightRequest { files: asked }).await?;
        if answer.files.len() != some.len() {
            bail!("the service answers for {} of {} files", answer.files.len(), some.len());
        }
        for (found, (path, entry)) in answer.files.into_iter().zip(some) {
            if let (Some(id), Some(bytes), true) = (&found.blob_id, entry.bytes, found.missing)
                && sent.insert(id.clone())
            {
                client.upload_blob(id, &entry.path, bytes).await.with_context(|| format!("send {path}"))?;
            }
            files.push(TemplateBuildContextFile {
                path: path.clone(),
                entry_type: found.entry_type,
                content_base64: None,
                blob_id: found.blob_id,
                mode: Some(entry.mode.clone()),
            });
        }
    }
    Ok(TemplateBuildContext { files })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path, dockerfile: &str) -> Vec<String> {
        entries(folder, dockerfile).unwrap().into_keys().collect()
    }

    #[test]
    fn a_context_is_what_its_ignore_file_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        for name in ["src/main.c", "src/.git/config", "secret.pem", "keep.pem", "empty"] {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        fs::set_permissions(folder.join("empty"), fs::Permissions::from_mode(0o750)).unwrap();
        let all = ["empty", "keep.pem", "secret.pem", "src", "src/.git", "src/.git/config", "src/main.c"];
        assert_eq!(names(folder, "Dockerfile"), all);
        assert_eq!(entries(folder, "Dockerfile").unwrap()["empty"].mode, "0750");

        fs::write(folder.join(".dockerignore"), "# secrets\n/*.pem \n! keep.pem\n\n**/.git\n.dockerignore\n").unwrap();
        assert_eq!(names(folder, "Dockerfile"), [".dockerignore", "empty", "keep.pem", "src", "src/main.c"]);
        // A Dockerfile's own comes first.
        fs::write(folder.join("app.Dockerfile.dockerignore"), "*\n!empty\n").unwrap();
        assert_eq!(names(folder, "app.Dockerfile"), ["app.Dockerfile.dockerignore", "empty"]);

        // What cannot be sent is refused, unless it is not wanted.
        std::os::unix::fs::symlink("empty", folder.join("link")).unwrap();
        assert!(entries(folder, "Dockerfile").unwrap_err().to_string().contains("link"));
        assert_eq!(names(folder, "app.Dockerfile"), ["app.Dockerfile.dockerignore", "empty"]);
    }

    #[test]
    fn files_have_the_digest_that_the_service_expects() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        assert_eq!(sha256(file.path()).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
