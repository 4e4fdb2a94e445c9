//! A sink that keeps everything in memory and checks how it is called.

use nullspace_oci::merge::{ContentSink, Entry, EntryKind, MergedTree, SinkError};

#[derive(Debug, Default)]
pub(crate) struct MemorySink {
    open: Option<(u64, Vec<u8>)>,
    /// Bytes of all files that were finished, and of those handed back.
    pub(crate) stored: u64,
    pub(crate) discarded: u64,
    pub(crate) holes: u64,
}

impl ContentSink for MemorySink {
    type Content = Vec<u8>;

    fn begin(&mut self, size: u64) -> Result<(), SinkError> {
        assert!(self.open.is_none(), "begin before finish");
        self.open = Some((size, Vec::new()));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.open.as_mut().expect("write before begin").1.extend_from_slice(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<(), SinkError> {
        assert!(len < 1 << 30, "a test's hole");
        self.holes += len;
        let data = &mut self.open.as_mut().expect("hole before begin").1;
        data.resize(data.len() + usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<u8>, SinkError> {
        let (size, data) = self.open.take().expect("finish before begin");
        assert_eq!(size, data.len() as u64, "announced and written size");
        self.stored += size;
        Ok(data)
    }

    fn discard(&mut self, content: Vec<u8>) -> Result<(), SinkError> {
        self.discarded += content.len() as u64;
        Ok(())
    }
}

/// A merged tree as text, one line an entry; what has its usual value is left out.
pub(crate) fn render(tree: &MergedTree<Vec<u8>>) -> String {
    let mut out = String::new();
    for (index, entry) in tree.entries().iter().enumerate() {
        let path = tree.path(index);
        let path = if path.is_empty() { ".".to_owned() } else { path.escape_ascii().to_string() };
        let line = match &entry.kind {
            EntryKind::Directory { meta } => format!("dir {path}{}", render_meta(meta, 0o755)),
            EntryKind::File { meta, content, .. } => {
                let data = if content.is_empty() { String::new() } else { format!(" data={}", content.escape_ascii()) };
                format!("file {path}{data}{}", render_meta(meta, 0o644))
            }
            EntryKind::Symlink { meta, target } => {
                format!("symlink {path} to={}{}", target.escape_ascii(), render_meta(meta, 0o777))
            }
            EntryKind::HardLink { to } => format!("link {path} to={}", tree.path(*to).escape_ascii()),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

fn render_meta(meta: &nullspace_oci::merge::Meta, mode: u16) -> String {
    let mut out = String::new();
    if meta.mode != mode {
        out.push_str(&format!(" mode={:o}", meta.mode));
    }
    if meta.uid != 0 {
        out.push_str(&format!(" uid={}", meta.uid));
    }
    if meta.gid != 0 {
        out.push_str(&format!(" gid={}", meta.gid));
    }
    if meta.mtime.seconds != 0 || meta.mtime.nanos != 0 {
        let total = i128::from(meta.mtime.seconds) * 1_000_000_000 + i128::from(meta.mtime.nanos);
        let (sign, total) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
        out.push_str(&format!(" mtime={sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000));
    }
    for (name, value) in &meta.xattrs {
        out.push_str(&format!(" xattr.{}={}", name.escape_ascii(), value.escape_ascii()));
    }
    out
}

/// Content of the file at `path`, hard links followed.
pub(crate) fn content<'a>(tree: &'a MergedTree<Vec<u8>>, path: &str) -> Option<&'a [u8]> {
    let mut entry: &Entry<Vec<u8>> = &tree.entries()[tree.find(path.as_bytes())?];
    if let EntryKind::HardLink { to } = entry.kind {
        entry = &tree.entries()[to];
    }
    match &entry.kind {
        EntryKind::File { content, .. } => Some(content),
        _ => None,
    }
}
