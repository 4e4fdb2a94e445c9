//! Lines for the kernel's log, and so for the console. They never go to the root, which may be frozen, and never block on a
//! console without a reader.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static KMSG: OnceLock<Option<File>> = OnceLock::new();

/// Opens the log while its device can be reached: the image may have none.
pub(crate) fn open() {
    KMSG.get_or_init(|| File::options().write(true).open("/dev/kmsg").ok());
}

/// Logs what went wrong, at a level that reaches the console of a quiet boot too.
pub(crate) fn problem(text: impl std::fmt::Display) {
    line(3, text);
}

/// Logs a milestone, for `dmesg`.
pub(crate) fn note(text: impl std::fmt::Display) {
    line(6, text);
}

fn line(level: u8, text: impl std::fmt::Display) {
    if let Some(Some(kmsg)) = KMSG.get() {
        // One write is one record. A full log is no reason to fail.
        let _ = (&mut &*kmsg).write_all(format!("<{level}>nullspace-init: {text}\n").as_bytes());
    }
}
