//! Images in temporary files, and e2fsprogs to judge them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use nullspace_ext4::{FileData, ImageWriter, Meta, Options, Summary, Timestamp, Tree};
use tempfile::NamedTempFile;
use uuid::Uuid;

use crate::reader::{Found, Reader};

/// 2023-11-14; before any clock that runs this test.
pub(crate) const TIME: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Options of a reproducible image.
pub(crate) fn options(size_bytes: u64) -> Options {
    Options::new(size_bytes, Uuid::from_u128(0x1234_5678_9abc_def0), Uuid::from_u128(0xfeed_beef), TIME)
}

pub(crate) fn meta(mode: u16) -> Meta {
    Meta { mode, uid: 1000, gid: 70_000, mtime: TIME, xattrs: Vec::new() }
}

pub(crate) fn tree() -> Tree {
    Tree::new(Meta { mode: 0o755, uid: 0, gid: 0, mtime: TIME, xattrs: Vec::new() }).unwrap()
}

/// An image in a file that is removed in the end.
pub(crate) struct Image {
    file: NamedTempFile,
}

impl Image {
    /// A writer for a new image, and the file it writes to.
    pub(crate) fn writer(options: Options) -> (Image, ImageWriter) {
        let image = Image { file: NamedTempFile::new().unwrap() };
        let writer = ImageWriter::create(image.reopen(), options).unwrap();
        (image, writer)
    }

    /// An image of a tree without contents.
    pub(crate) fn of_tree(options: Options, tree: Tree) -> (Image, Summary) {
        let (image, writer) = Image::writer(options);
        let summary = writer.finish(tree).unwrap();
        (image, summary)
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn reopen(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    /// Panics with the complaints of e2fsck if it has any.
    pub(crate) fn check(&self) {
        let output = run("e2fsck", &["-fn"], self.path());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("Fix?"), "e2fsck: {text}");
    }

    /// What a debugfs command prints.
    pub(crate) fn debugfs(&self, request: &str) -> String {
        let output = run("debugfs", &["-R", request], self.path());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors = errors.lines().filter(|line| !line.starts_with("debugfs 1.")).collect::<Vec<_>>();
        assert!(errors.is_empty(), "debugfs {request}: {errors:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Everything in the image, by our own reader.
    pub(crate) fn read(&self) -> BTreeMap<Vec<u8>, Found> {
        Reader::open(self.reopen()).tree()
    }

    /// What dumpe2fs prints.
    pub(crate) fn dump(&self) -> String {
        String::from_utf8_lossy(&run("dumpe2fs", &[], self.path()).stdout).into_owned()
    }
}

/// Writes a file's contents.
pub(crate) fn data(writer: &mut ImageWriter, contents: &[u8]) -> FileData {
    let mut file = writer.begin_file();
    file.push(contents).unwrap();
    file.finish().unwrap()
}

/// Bytes without runs of zeros, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The whole file as it is, holes as zeros: for comparing small images.
pub(crate) fn bytes_of(image: &Image) -> Vec<u8> {
    std::fs::read(image.path()).unwrap()
}

fn run(program: &str, arguments: &[&str], image: &Path) -> Output {
    Command::new(program).args(arguments).arg(image).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}
