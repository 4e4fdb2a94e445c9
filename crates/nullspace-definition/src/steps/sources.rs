//! Sources of a copy, resolved in a build context: a file, a folder with its contents, or the matches of a pattern.

use std::collections::BTreeSet;

use crate::context::{PlannedContext, PlannedEntry};
use crate::patterns::named;

/// Permissions of files and folders without their own.
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;

/// One source to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    /// The file's own name; `None` for a folder, whose contents are copied.
    pub name: Option<String>,
    /// The source itself with the empty path, then its contents, folders first.
    pub entries: Vec<SourceEntry>,
}

/// An entry of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    /// Path below the source.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// A file's blob id; `None` for a folder.
    pub blob: Option<String>,
}

/// Resolves a source in a build's context.
pub fn resolve(context: &PlannedContext, source: &str) -> Vec<CopySource> {
    named(&context.0, source).iter().map(|path| one(context, path)).collect()
}

fn one(context: &PlannedContext, path: &str) -> CopySource {
    if let Some(PlannedEntry { mode, blob: Some(blob), .. }) = context.0.get(path) {
        let entry = SourceEntry { path: String::new(), mode: mode.unwrap_or(FILE_MODE), blob: Some(blob.clone()) };
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        return CopySource { name: Some(name), entries: vec![entry] };
    }
    let mode = |path: &str| context.0.get(path).and_then(|entry| entry.mode).unwrap_or(FOLDER_MODE);
    let mut entries = vec![SourceEntry { path: String::new(), mode: mode(path), blob: None }];
    let mut made = BTreeSet::new();
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let below = context.0.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
    for (name, entry) in below {
        let Some(relative) = name.get(prefix.len()..).filter(|relative| !relative.is_empty()) else { continue };
        for (at, _) in relative.match_indices('/') {
            let folder = relative.get(..at).unwrap_or_default();
            if made.insert(folder.to_owned()) {
                let whole = format!("{prefix}{folder}");
                entries.push(SourceEntry { path: folder.to_owned(), mode: mode(&whole), blob: None });
            }
        }
        match &entry.blob {
            Some(blob) => entries.push(SourceEntry {
                path: relative.to_owned(),
                mode: entry.mode.unwrap_or(FILE_MODE),
                blob: Some(blob.clone()),
            }),
            None if made.insert(relative.to_owned()) => {
                entries.push(SourceEntry { path: relative.to_owned(), mode: mode(name), blob: None });
            }
            None => {}
        }
    }
    CopySource { name: None, entries }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn context(entries: &[(&str, Option<u32>, bool)]) -> PlannedContext {
        let entry = |mode: &Option<u32>, file: &bool, path: &str| PlannedEntry {
            mode: *mode,
            blob: file.then(|| format!("blob of {path}")),
            inline: false,
        };
        PlannedContext(entries.iter().map(|(path, mode, file)| ((*path).to_owned(), entry(mode, file, path))).collect())
    }

    #[test]
    fn sources_are_files_folders_and_patterns() {
        let files = context(&[
            ("a.txt", Some(0o600), true),
            ("b.txt", None, true),
            ("dir", Some(0o700), false),
            ("dir-2/x", None, true),
            ("dir/deep/er/file", None, true),
            ("dir/empty", None, false),
            ("odd[1]", None, true),
        ]);
        assert_eq!(named(&files.0, "*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(named(&files.0, "dir*"), ["dir", "dir-2"]);
        assert_eq!(named(&files.0, "*/x"), ["dir-2/x"]);
        assert_eq!(named(&files.0, "./dir//deep/"), ["dir/deep"]);
        assert_eq!(named(&files.0, "odd[1]"), ["odd[1]"], "its own name goes first");
        assert_eq!(named(&files.0, "/"), [""]);
        assert!(
            named(&files.0, "none").is_empty() && named(&files.0, "x*").is_empty() && named(&files.0, "di").is_empty()
        );

        type Shown = Vec<(Option<String>, Vec<(String, u32, bool)>)>;
        let shown = |source: &str| -> Shown {
            let sources = resolve(&files, source).into_iter();
            let entries =
                |source: CopySource| source.entries.into_iter().map(|e| (e.path, e.mode, e.blob.is_some())).collect();
            sources.map(|source| (source.name.clone(), entries(source))).collect()
        };
        let (file, folder) = (true, false);
        assert_eq!(shown("a.txt"), [(Some("a.txt".into()), vec![("".into(), 0o600, file)])]);
        assert_eq!(
            shown("dir"),
            [(
                None,
                vec![
                    ("".into(), 0o700, folder),
                    ("deep".into(), 0o755, folder),
                    ("deep/er".into(), 0o755, folder),
                    ("deep/er/file".into(), 0o644, file),
                    ("empty".into(), 0o755, folder),
                ]
            )]
        );
        let whole = shown(".");
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].1.len(), 11, "{whole:?}");
    }
}
