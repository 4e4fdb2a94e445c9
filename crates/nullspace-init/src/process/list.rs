//! The guest's processes, from /proc.

#![allow(unsafe_code, reason = "tests ask for their parent and name a thread")]

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};

use nullspace_guest::message::Process;

use super::namespace;

/// Processes listed at most.
const MAX_PROCESSES: usize = 4096;
/// Bytes of a command line that are shown.
const MAX_COMMAND: u64 = 512;
/// Bytes of all command lines together, so that the answer fits a message.
const MAX_COMMANDS: usize = 384 * 1024;
/// PF_KTHREAD of the kernel's `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Ascending by pid; without kernel threads and this process. While a first process lives, those of its namespace, by the
/// pids that they have there.
pub(crate) fn processes(starts_of: impl Fn(u32) -> Option<u32>) -> io::Result<Vec<Process>> {
    let pids = numbers()?;
    let (mut room, within) = (MAX_COMMANDS, namespace::current());
    let mut found = Vec::new();
    for pid in pids {
        // It may end at any moment between the listing and here.
        let Some(mut process) = text_of(pid, "stat").ok().and_then(|stat| parse_stat(&stat)) else { continue };
        if let Some(command) = command_line(pid) {
            process.command = command;
        }
        if let Some(namespace) = &within {
            let Some(inside) = namespace.inside(pid) else { continue };
            // 0, as the kernel says it there, for a parent that is outside.
            (process.pid, process.ppid) = (inside, namespace.inside(process.ppid).unwrap_or(0));
        }
        process.starts = starts_of(process.pid);
        room = match room.checked_sub(process.command.len()) {
            Some(room) if found.len() < MAX_PROCESSES => room,
            _ => break,
        };
        found.push(process);
    }
    found.sort_unstable_by_key(|process| process.pid);
    Ok(found)
}

/// All living processes but kernel threads and this process, by the machine's pids, ascending.
pub(crate) fn pids() -> io::Result<Vec<u32>> {
    let mut pids = numbers()?;
    pids.retain(|pid| text_of(pid, "stat").is_ok_and(|stat| lives(&stat)));
    Ok(pids)
}

/// The machine's pids of all processes and kernel threads but this process, ascending.
pub(crate) fn numbers() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The text of a file of a process. Its name, which is in some, may hold any bytes: those that are not UTF-8 are shown as U+FFFD.
pub(crate) fn text_of(pid: impl Display, name: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}"))?).into_owned())
}

/// The session that a process belongs to by a line of `/proc/<pid>/stat`: the fourth field behind the name. `None` when it has
/// ended.
pub(crate) fn session_of(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(") ").filter(|_| lives(stat))?;
    rest.split(' ').nth(3)?.parse().ok()
}

/// Also of a process whose first thread has ended and others run: it is shown as ended.
fn lives(stat: &str) -> bool {
    // The 18th field behind the name is the number of threads.
    let threads = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(17)?.parse().ok()).unwrap_or(0);
    parse_stat(stat).is_some_and(|process| process.running || threads > 1)
}

/// `pid (name) state ppid ... flags`, proc(5). The name may hold anything, parentheses and newlines too.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let ppid = fields.next()?.parse().ok()?;
    // Behind ppid: pgrp, session, tty_nr, tpgid, flags.
    let flags: u64 = fields.nth(4)?.parse().ok()?;
    if flags & KERNEL_THREAD != 0 {
        return None;
    }
    Some(Process {
        pid: pid.parse().ok()?,
        ppid,
        command: format!("[{name}]"),
        running: !matches!(state, "Z" | "X"),
        starts: None,
    })
}

fn command_line(pid: u32) -> Option<String> {
    let mut raw = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.take(MAX_COMMAND).read_to_end(&mut raw).ok()?;
    while raw.last() == Some(&0) {
        raw.pop();
    }
    if raw.is_empty() {
        return None;
    }
    raw.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    Some(String::from_utf8_lossy(&raw).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let process = |stat: &str| parse_stat(stat).map(|p| (p.pid, p.ppid, p.command, p.running));
        let cases = [
            ("7 (sh) S 1 7 7 0 -1 4194560 1", Some((7, 1, "[sh]", true))),
            ("8 (a) b (c) Z 7 7 7 0 -1 0 1", Some((8, 7, "[a) b (c]", false))),
            ("9 (new\nline) R 7 7 7 0 -1 0 1", Some((9, 7, "[new\nline]", true))),
            ("2 (kthreadd) S 0 0 0 0 -1 2129984 0", None),
            ("5 (short) S 1", None),
            ("", None),
        ];
        for (stat, expected) in cases {
            let expected = expected.map(|(pid, ppid, command, running)| (pid, ppid, command.to_owned(), running));
            assert_eq!(process(stat), expected, "{stat}");
        }
    }

    #[test]
    fn a_process_lives_as_long_as_a_thread_of_it() {
        let stat = |state: &str, flags: u64, threads: u32| {
            format!("9 (x) y) {state} 1 9 9 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 {threads} 0 100")
        };
        assert!(lives(&stat("S", 4_194_560, 1)) && lives(&stat("Z", 4_194_560, 2)));
        assert!(!lives(&stat("Z", 4_194_560, 1)) && !lives(&stat("S", KERNEL_THREAD, 1)));
        assert!(!lives(""));
    }

    #[test]
    fn a_session_is_read_from_behind_the_name() {
        let rest = "34816 0 4194560 1 2 3 4 5 6 7 8 20 0 1 0 100";
        assert_eq!(session_of(&format!("7 (a) b) S 1 6 5 {rest}")), Some(5));
        assert_eq!(session_of(&format!("7 (sh) Z 1 6 5 {rest}")), None);
        // Its first thread has ended, and another runs.
        assert_eq!(session_of(&format!("7 (sh) Z 1 6 5 {}", rest.replace("20 0 1", "20 0 2"))), Some(5));
        assert_eq!(session_of("7 (sh"), None);
    }

    #[test]
    fn a_name_of_any_bytes_hides_no_process() {
        // A thread's name is that of its own entry; the process's is that of its first thread.
        let own = std::thread::spawn(|| {
            // SAFETY: the name is a string that outlives the call; the other names a number.
            let tid = unsafe {
                libc::prctl(libc::PR_SET_NAME, c"a\xff) b".as_ptr());
                libc::syscall(libc::SYS_gettid)
            };
            (text_of(tid, "stat").unwrap(), text_of(tid, "status").unwrap(), tid)
        });
        let (stat, status, tid) = own.join().unwrap();
        assert!(stat.starts_with(&format!("{tid} (a\u{fffd}) b) ")), "{stat}");
        assert!(lives(&stat) && session_of(&stat).is_some() && status.contains("NSpid:"));
    }

    #[test]
    fn this_test_runner_is_listed_without_this_process() {
        let list = processes(|_| None).unwrap();
        assert!(list.iter().all(|process| process.pid != std::process::id()));
        assert!(list.is_sorted_by_key(|process| process.pid));
        // SAFETY: a plain system call.
        let parent = unsafe { libc::getppid() };
        assert!(list.iter().any(|process| i64::from(process.pid) == i64::from(parent) && process.running));
    }
}
