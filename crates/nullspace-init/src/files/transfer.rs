//! What moves bytes: reading, writing, listing. Credit of the channel bounds what is under way; a caller who has gone ends
//! the operation at its next piece.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::frame::{Kind, MAX_PAYLOAD};
use nullspace_guest::message::{Failure, FailureKind, Outcome};
use nullspace_guest::search::Part;
use serde::Serialize;

use super::entry::{self, Names};
use super::walk::{self, MAX_NAME_BYTES};
use super::{Stop, failure, invalid, make_folders};
use crate::session::Channel;

/// Permissions of a new file.
const FILE_MODE: u32 = 0o644;
/// A listing with more entries than this is refused, and one whose names take more than [`MAX_NAME_BYTES`] at a time.
const MAX_ENTRIES: usize = 100_000;
/// A listing goes no deeper.
const MAX_DEPTH: u32 = 64;
/// Lines are sent in pieces of about so many bytes.
const PIECE: usize = 32 * 1024;

/// Sends a file, or a part of it.
pub(super) fn read(path: &Path, part: Option<Part>, names: &Names, channel: &Channel) -> Result<Outcome, Stop> {
    let cannot = |error: &io::Error| failure(error, "It cannot be read", path);
    let mut file = open(path, OpenOptions::new().read(true)).map_err(|error| cannot(&error))?;
    regular(&file, path)?;
    let mut entry = std::fs::canonicalize(path)
        .and_then(|real| entry::of(&real, names))
        .map_err(|error| failure(&error, "It cannot be looked at", path))?;
    let mut left = u64::MAX;
    if let Some(part) = part {
        // The size of the file that is open, whatever has its name by now.
        entry.size = file.metadata().map_err(|error| cannot(&error))?.len();
        let (start, length) = part.within(entry.size).unwrap_or_default();
        file.seek(SeekFrom::Start(start)).map_err(|error| cannot(&error))?;
        left = length;
    }
    channel.reply(&Outcome::File { entry });
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let room = room(channel)?.min(MAX_PAYLOAD).min(usize::try_from(left).unwrap_or(usize::MAX));
        let piece = buffer.get_mut(..room).unwrap_or_default();
        match file.read(piece) {
            Ok(0) => return Ok(Outcome::Done),
            Ok(len) => {
                left = left.saturating_sub(len as u64);
                channel.output(Kind::Stdout, piece.get(..len).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot(&error).into()),
        }
    }
}

/// What the host sends over a channel, piece by piece.
pub(super) struct Input<'a> {
    channel: &'a Channel,
    piece: bytes::Bytes,
}

impl Input<'_> {
    pub(super) fn new(channel: &Channel) -> Input<'_> {
        Input { channel, piece: bytes::Bytes::new() }
    }

    /// Up to `most` bytes, as they come; none at the end.
    pub(super) fn next(&mut self, most: usize) -> Result<bytes::Bytes, Stop> {
        while self.piece.is_empty() {
            self.channel.wake().clear();
            if self.channel.is_reset() {
                return Err(Stop::Cancelled);
            }
            match self.channel.stdin() {
                Ok(Some(bytes)) => {
                    // Held here at most one piece, so that its credit may be given back at once.
                    self.channel.consumed(bytes.len());
                    self.piece = bytes;
                }
                Ok(None) => wait(self.channel),
                Err(_over) => return Ok(bytes::Bytes::new()),
            }
        }
        Ok(self.piece.split_to(most.min(self.piece.len())))
    }

    /// Fills the buffer; false when the end comes first.
    pub(super) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<bool, Stop> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let piece = self.next(rest.len())?;
            let (now, later) = rest.split_at_mut(piece.len());
            if now.is_empty() {
                return Ok(false);
            }
            now.copy_from_slice(&piece);
            rest = later;
        }
        Ok(true)
    }
}

pub(super) fn write(path: &Path, channel: &Channel) -> Result<(), Stop> {
    let cannot = |error: &io::Error| failure(error, "It cannot be written", path);
    make_folders(path.parent().unwrap_or(Path::new("/")))?;
    // A file that is there first, and not by O_CREAT: in a sticky directory the kernel may refuse that for another user's
    // (fs.protected_regular).
    let mut file = open(path, OpenOptions::new().write(true))
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => open(path, OpenOptions::new().write(true).create(true).mode(FILE_MODE)),
            _ => Err(error),
        })
        .map_err(|error| cannot(&error))?;
    regular(&file, path)?;
    // Not by O_TRUNC: what turns out to be no regular file is left alone.
    file.set_len(0).map_err(|error| cannot(&error))?;
    channel.reply(&Outcome::Done);
    let mut input = Input::new(channel);
    loop {
        let bytes = input.next(usize::MAX)?;
        if bytes.is_empty() {
            return Ok(());
        }
        file.write_all(&bytes).map_err(|error| cannot(&error))?;
    }
}

/// Sends the entries below `path` as JSON lines, in the order of their paths.
pub(super) fn list(path: &Path, depth: u32, names: &Names, channel: &Channel) -> Result<(), Stop> {
    let mut listing = Listing { lines: Lines::new(channel), entries: 0, name_bytes: 0 };
    listing.folder(path, depth.clamp(1, MAX_DEPTH), names, true)?;
    listing.lines.flush()
}

struct Listing<'a> {
    lines: Lines<'a>,
    entries: usize,
    /// Bytes of names that are kept.
    name_bytes: usize,
}

fn too_many() -> Failure {
    let message = format!(
        "There are more than {MAX_ENTRIES} entries, or their names take more than {} MiB: list a smaller directory.",
        MAX_NAME_BYTES >> 20
    );
    Failure { kind: FailureKind::Limit, message }
}

impl Listing<'_> {
    fn folder(&mut self, path: &Path, depth: u32, names: &Names, asked_for: bool) -> Result<(), Stop> {
        let (inside, bytes) = match walk::names(path, MAX_ENTRIES, MAX_NAME_BYTES - self.name_bytes) {
            Ok(found) => found.ok_or_else(too_many)?,
            // A folder on the way that this user may not enter, or that has just gone, is listed without what is in it.
            Err(_) if !asked_for => return Ok(()),
            Err(error) => return Err(failure(&error, "It cannot be listed", path).into()),
        };
        self.name_bytes += bytes;
        for name in inside {
            let path = path.join(name);
            let Ok(entry) = entry::of(&path, names) else { continue };
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(too_many().into());
            }
            let is_dir = entry.kind == nullspace_guest::file::FileKind::Dir;
            self.lines.push(&entry)?;
            if is_dir && depth > 1 {
                self.folder(&path, depth - 1, names, false)?;
            }
        }
        self.name_bytes -= bytes;
        Ok(())
    }
}

/// An answer of JSON lines.
pub(super) struct Lines<'a> {
    channel: &'a Channel,
    buffer: Vec<u8>,
    /// Bytes of all lines so far.
    pub(super) bytes: usize,
}

impl Lines<'_> {
    pub(super) fn new(channel: &Channel) -> Lines<'_> {
        Lines { channel, buffer: Vec::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, line: &impl Serialize) -> Result<(), Stop> {
        let before = self.buffer.len();
        // Our own types have string keys and no floats: serialising cannot fail.
        let _ = serde_json::to_writer(&mut self.buffer, line);
        self.buffer.push(b'\n');
        self.bytes += self.buffer.len() - before;
        if self.buffer.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        let mut left = self.buffer.as_slice();
        while !left.is_empty() {
            let (piece, rest) = left.split_at(room(self.channel)?.min(left.len()));
            self.channel.output(Kind::Stdout, piece);
            left = rest;
        }
        self.buffer.clear();
        Ok(())
    }
}

/// Opens without waiting for anyone: a FIFO without a partner must not hold the operation up.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY).open(path)
}

pub(super) fn regular(file: &File, path: &Path) -> Result<(), Failure> {
    let meta = file.metadata().map_err(|error| failure(&error, "It cannot be looked at", path))?;
    match meta.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(invalid(format!("`{}` is a directory.", path.display()))),
        _ => Err(invalid(format!("`{}` is not a regular file.", path.display()))),
    }
}

/// Waits until something may be sent.
fn room(channel: &Channel) -> Result<usize, Stop> {
    loop {
        channel.wake().clear();
        if channel.is_reset() {
            return Err(Stop::Cancelled);
        }
        match channel.room() {
            0 => wait(channel),
            room => return Ok(room),
        }
    }
}

fn wait(channel: &Channel) {
    let mut wake = [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)];
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut wake, PollTimeout::NONE);
}
