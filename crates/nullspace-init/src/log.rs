//! Lines for the kernel's log, and so for the console: never to the root, which may be frozen, and never blocking on a
//! console that nobody reads.

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

static KMSG: OnceLock<Option<File>> = OnceLock::new();

/// Opens the log while its device can be reached: the image may have none.
pub(crate) fn open() {
    KMSG.get_or_init(|| File::options().write(true).open("/dev/kmsg").ok());
}

/// Logs one line.
pub(crate) fn line(text: impl std::fmt::Display) {
    if let Some(Some(kmsg)) = KMSG.get() {
        // One write is one record. A full log is no reason to fail.
        let _ = (&mut &*kmsg).write_all(format!("<5>nullspace-init: {text}\n").as_bytes());
    }
}
