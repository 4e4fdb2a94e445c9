//! A build context: the files that steps and Dockerfiles copy, checked and given a digest.
//!
//! ```text
//!   path, entry_type, mode, content_base64 | blob_id   ──>  Context { entries by path, digest }
//! ```
//! A build keeps it as [`PlannedContext`], in which every file is a blob. Content that came with the request is stored as
//! one. Paths are data until a build puts them into its guest: none of them is ever opened on this host.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_api::{TemplateBuildContext, TemplateBuildContextManifestSummary, TemplateContextEntryType};
use nullspace_types::{BlobId, InvalidBlobId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::patterns::named;
use crate::problems::{MAX_PATH, Wrong};

/// Most entries of one context.
pub const MAX_ENTRIES: usize = 100_000;
/// Most bytes of a blob's id in a request.
const MAX_BLOB_ID: usize = 256;
/// Most problems reported for one context.
const MAX_PROBLEMS: usize = 20;

/// The entries of a context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: Option<u32>,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Directory,
    /// SHA-256 and size of content in the request.
    Inline([u8; 32], u64),
    Blob(BlobId),
    /// A text that is no valid blob id.
    Unknown(String),
}

impl Context {
    /// The blobs that must have been uploaded.
    pub fn blobs(&self) -> BTreeSet<BlobId> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.content {
                Content::Blob(id) => Some(id.clone()),
                _ => None,
            })
            .collect()
    }

    /// The paths with an invalid blob id, and the id.
    pub fn unknown_blobs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|(path, entry)| match &entry.content {
            Content::Unknown(id) => Some((path.as_str(), id.as_str())),
            _ => None,
        })
    }

    /// The paths of this blob.
    pub fn paths_of(&self, blob: &BlobId) -> Vec<&str> {
        let is = |entry: &Entry| matches!(&entry.content, Content::Blob(id) if id == blob);
        self.entries.iter().filter(|(_, entry)| is(entry)).map(|(path, _)| path.as_str()).collect()
    }

    /// Whether a copy's source exists here: an entry, a folder of one, or a pattern with a match.
    pub fn has(&self, source: &str) -> bool {
        !named(&self.entries, source).is_empty()
    }

    /// The context as a build keeps it, in which every file is a blob.
    pub fn planned(&self) -> PlannedContext {
        let plan = |entry: &Entry| {
            let (blob, inline) = match &entry.content {
                Content::Directory => (None, false),
                Content::Inline(sha256, bytes) => (BlobId::new(&hex::encode(sha256), *bytes).ok(), true),
                Content::Blob(id) => (Some(id.clone()), false),
                // Kept as it came: a build with it is accepted, and fails.
                Content::Unknown(id) => {
                    return PlannedEntry { mode: entry.mode, blob: Some(id.clone()), inline: false };
                }
            };
            PlannedEntry { mode: entry.mode, blob: blob.map(|id| id.to_string()), inline }
        };
        PlannedContext(self.entries.iter().map(|(path, entry)| (path.clone(), plan(entry))).collect())
    }

    /// The summary for the API; `None` when the context is empty.
    pub fn summary(&self) -> Option<TemplateBuildContextManifestSummary> {
        if self.entries.is_empty() {
            return None;
        }
        let digest = self.digest();
        let files = self.entries.values().filter(|entry| entry.content != Content::Directory).count();
        Some(TemplateBuildContextManifestSummary {
            context_manifest_id: format!("ctx_{}", digest.get(..32).unwrap_or(&digest)),
            context_digest: format!("sha256:{digest}"),
            file_count: u64::try_from(files).unwrap_or(u64::MAX),
        })
    }

    /// SHA-256 over every entry in the order of paths, each part with its length. It depends neither on the order in which a
    /// client lists its files, nor on whether it sends or uploads them.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(bytes);
        };
        for (path, entry) in &self.entries {
            part(path.as_bytes());
            part(&entry.mode.map(u32::to_le_bytes).map_or(Vec::new(), Vec::from));
            match &entry.content {
                Content::Directory => part(b"dir"),
                Content::Inline(sha256, bytes) => {
                    part(hex::encode(sha256).as_bytes());
                    part(&bytes.to_le_bytes());
                }
                Content::Blob(id) => {
                    part(id.sha256().as_bytes());
                    part(&id.bytes().to_le_bytes());
                }
                Content::Unknown(id) => part(id.as_bytes()),
            }
        }
        hex::encode(hash.finalize())
    }
}

/// A context in a build's definition: entries by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedContext(pub BTreeMap<String, PlannedEntry>);

/// A file or folder of a [`PlannedContext`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedEntry {
    /// Permission bits, if the request gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// A file's blob id, as the request has it; `None` for a folder. A build with an invalid id fails at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<String>,
    /// The content came with the request, and is not kept for another build.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inline: bool,
}

impl PlannedContext {
    /// Whether the context has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a file came with the request instead of an upload.
    pub fn has_inline(&self) -> bool {
        self.0.values().any(|entry| entry.inline)
    }

    /// The blobs of all files, each once, without invalid ids.
    pub fn blobs(&self) -> BTreeSet<BlobId> {
        self.0.values().filter_map(|entry| entry.blob.as_ref()?.parse().ok()).collect()
    }
}

impl PlannedEntry {
    /// A file's blob; `None` for a folder.
    pub fn blob_id(&self) -> Option<Result<BlobId, InvalidBlobId>> {
        self.blob.as_ref().map(|id| id.parse())
    }
}

/// Checks a context.
pub fn check(context: Option<&TemplateBuildContext>, wrong: &mut Wrong) -> Context {
    let mut checked = Context::default();
    let Some(context) = context else { return checked };
    if context.files.len() > MAX_ENTRIES {
        wrong.say("build_context.files", format_args!("has more than {MAX_ENTRIES} entries"));
        return checked;
    }
    let mut problems = 0;
    for (index, file) in context.files.iter().enumerate() {
        if problems >= MAX_PROBLEMS {
            wrong.say("build_context.files", "has more of such entries");
            break;
        }
        let mut here = Wrong::default();
        let field = format!("build_context.files[{index}]");
        check_path(&format!("{field}.path"), &file.path, &mut here);
        let mode = file.mode.as_deref().and_then(|mode| octal(&format!("{field}.mode"), mode, &mut here));
        let content = match (file.entry_type, &file.content_base64, &file.blob_id) {
            (TemplateContextEntryType::Dir, None, None) => Content::Directory,
            (TemplateContextEntryType::Dir, ..) => {
                here.say(&field, "is a directory and has content");
                Content::Directory
            }
            (TemplateContextEntryType::File, None, Some(id)) if id.is_empty() || id.len() > MAX_BLOB_ID => {
                here.say(&format!("{field}.blob_id"), format_args!("must have 1 to {MAX_BLOB_ID} bytes"));
                Content::Directory
            }
            (TemplateContextEntryType::File, None, Some(id)) => match id.parse() {
                Ok(id) => Content::Blob(id),
                Err(_) => Content::Unknown(id.clone()),
            },
            (TemplateContextEntryType::File, Some(text), None) => match STANDARD.decode(text) {
                Ok(bytes) => {
                    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    Content::Inline(Sha256::digest(&bytes).into(), size)
                }
                Err(_) => {
                    here.say(&format!("{field}.content_base64"), "is not base64");
                    Content::Directory
                }
            },
            (TemplateContextEntryType::File, ..) => {
                here.say(&field, "needs content_base64 or blob_id, and not both");
                Content::Directory
            }
        };
        let path = file.path.trim_end_matches('/').to_owned();
        if checked.entries.insert(path, Entry { mode, content }).is_some() {
            here.say(&format!("{field}.path"), "is given twice");
        }
        problems += wrong.take(here);
    }
    let inside_a_file = checked.entries.keys().filter(|path| {
        let mut parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        parents.any(|parent| checked.entries.get(parent).is_some_and(|entry| entry.content != Content::Directory))
    });
    let count = inside_a_file.count();
    if count > 0 {
        wrong.say("build_context.files", format_args!("has {count} entries below a path that is a file"));
    }
    checked
}

/// Checks a path of a context: relative, and without a way out of the context. Names may have all characters that Linux
/// allows, such as a backslash, a newline or a `!`.
pub fn check_path(field: &str, path: &str, wrong: &mut Wrong) {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    if trimmed.is_empty() {
        wrong.say(field, format_args!("must have 1 to {MAX_PATH} bytes"));
    }
    if path.contains('\0') {
        wrong.say(field, "contains a NUL character");
    }
    wrong.lengths(field, trimmed);
    if trimmed.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        wrong.say(field, "must be relative, without empty parts, '.' and '..'");
    }
}

/// Parses permission bits in octal digits.
pub fn octal(field: &str, text: &str, wrong: &mut Wrong) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| *bits <= 0o7777 && !digits.starts_with('+'));
    if bits.is_none() {
        wrong.say(field, "must be octal digits, at most 7777");
    }
    bits
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(files: Value) -> (Context, String) {
        let context: TemplateBuildContext = serde_json::from_value(json!({ "files": files })).unwrap();
        let mut wrong = Wrong::default();
        let checked = check(Some(&context), &mut wrong);
        (checked, wrong.into_message())
    }

    #[test]
    fn paths_that_lead_elsewhere_and_contents_that_are_none_are_named() {
        for (file, what) in [
            (json!({"path": "/etc/passwd", "entry_type": "dir"}), "must be relative"),
            (json!({"path": "a/../../b", "entry_type": "dir"}), "must be relative"),
            (json!({"path": "", "entry_type": "dir"}), "must have 1 to"),
            (json!({"path": "a\u{0}b", "entry_type": "dir"}), "NUL"),
            (json!({"path": "..", "entry_type": "dir"}), "must be relative"),
            (json!({"path": "a".repeat(256), "entry_type": "dir"}), "has a name of 256 bytes"),
            (json!({"path": format!("a/{}/b", "ä".repeat(128)), "entry_type": "dir"}), "has a name of 256 bytes"),
            (json!({"path": "a/".repeat(2048) + "b", "entry_type": "dir"}), "is longer than 4095 bytes"),
            (json!({"path": "a", "entry_type": "dir", "content_base64": ""}), "is a directory"),
            (json!({"path": "a", "entry_type": "file"}), "needs content_base64 or blob_id"),
            (json!({"path": "a", "entry_type": "file", "content_base64": "", "blob_id": "x"}), "and not both"),
            (json!({"path": "a", "entry_type": "file", "content_base64": "%"}), "is not base64"),
            (json!({"path": "a", "entry_type": "file", "blob_id": ""}), "blob_id must have 1 to 256 bytes"),
            (
                json!({"path": "a", "entry_type": "file", "blob_id": "x".repeat(257)}),
                "blob_id must have 1 to 256 bytes",
            ),
            (json!({"path": "a", "entry_type": "dir", "mode": "0999"}), "octal"),
            (json!({"path": "a", "entry_type": "dir", "mode": "17777"}), "octal"),
        ] {
            let (_, message) = checked(json!([file]));
            assert!(message.contains(what) && message.contains("build_context.files[0]"), "{file}: {message}");
        }
        let (_, twice) = checked(json!([{"path": "a", "entry_type": "dir"}, {"path": "a/", "entry_type": "dir"}]));
        assert!(twice.contains("is given twice"), "{twice}");
        let (_, below) = checked(json!([
            {"path": "a", "entry_type": "file", "content_base64": ""}, {"path": "a/b", "entry_type": "dir"}
        ]));
        assert!(below.contains("below a path that is a file"), "{below}");
    }

    #[test]
    fn whatever_linux_takes_as_a_name_is_taken() {
        for path in [
            "!bang".to_owned(),
            r"mnt-my\x2ddata.mount".into(),
            r"C:\dir\file".into(),
            "line\nend".into(),
            "\u{1}\u{7f}".into(),
            " ".into(),
            "...".into(),
            "..a/b..".into(),
            "*?[x]".into(),
            "#".into(),
            "-".into(),
            "a".repeat(255),
            "日本語/\u{202e}".into(),
            "a/".repeat(2047) + "b",
        ] {
            let (context, message) = checked(json!([{"path": path, "entry_type": "file", "content_base64": ""}]));
            assert_eq!(message, "", "{path:?}");
            assert!(context.has(&path), "{path:?}");
        }
    }

    #[test]
    fn the_digest_is_of_the_files_however_they_are_sent() {
        let inline = json!({"path": "b", "entry_type": "file", "content_base64": "eA=="});
        let id = BlobId::new(&hex::encode(Sha256::digest(b"x")), 1).unwrap();
        let blob = json!({"path": "b", "entry_type": "file", "blob_id": id.to_string()});
        let dir = json!({"path": "a", "entry_type": "dir"});
        let (one, message) = checked(json!([inline, dir]));
        assert_eq!(message, "");
        let (other, _) = checked(json!([dir, blob]));
        assert_eq!(one.summary(), other.summary());
        assert_eq!(one.summary().unwrap().file_count, 1);
        let (changed, _) = checked(json!([{"path": "b", "entry_type": "file", "content_base64": "eQ=="}, dir]));
        assert_ne!(one.summary(), changed.summary());
        assert!(one.has("b") && one.has("./b") && one.has(".") && one.has("?") && !one.has("*.txt") && !one.has("c"));
    }
}
