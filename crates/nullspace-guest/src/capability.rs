//! Versions of the agent's interface, and the capabilities that an agent tells.
//!
//! A snapshot contains the agent that ran when it was taken. A host therefore meets agents that are older than itself.
//!
//! ```text
//!   agent ── HELLO_ACK: version, capabilities ──> host
//!                       version outside OLDEST_AGENT_ABI..=AGENT_ABI   the session ends: AgentError::Abi
//!                       operation without its capability               is not sent:      AgentError::Lacking
//! ```
//! A new operation is a new capability and does not change the version: older agents do not tell it, and hosts do not ask
//! them for it. The version rises when frames, or the meaning of an operation, change. Then hosts keep speaking to the older
//! agents, or [`OLDEST_AGENT_ABI`] rises too, and templates with older agents must be built again.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Interface version of this build's agent, and the newest that this build's host speaks; part of a snapshot's
/// compatibility class.
///
/// - 6: the last version that tells no capabilities.
/// - 7: the agent tells its capabilities.
pub const AGENT_ABI: u32 = 7;

/// Oldest interface version that this build's host speaks.
pub const OLDEST_AGENT_ABI: u32 = 6;

/// A thing that an agent can do: operations of [`Request`](crate::message::Request), which says by `needs` what each needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// `Request::Configure`.
    Configure,
    /// `Request::Restored`.
    Restored,
    /// `Request::Restored` with [`Restored::trial`](crate::message::Restored::trial): without resume hooks.
    Trial,
    /// `Request::Exec`.
    Exec,
    /// `Request::StartService` and `Request::Attach`.
    Services,
    /// `Request::RunService`.
    RunService,
    /// `Request::FeedService`.
    FeedService,
    /// `Request::Processes`.
    Processes,
    /// `Request::Kill`.
    Kill,
    /// `Request::File`, each operation of version 6.
    Files,
    /// `Request::Probe`, each check of version 6.
    Probe,
    /// `Request::Freeze` and `Request::Thaw`.
    Freeze,
    /// `Request::GrowRoot`.
    GrowRoot,
    /// `Request::EndProcesses`.
    EndProcesses,
    /// `Request::Shutdown`.
    Shutdown,
    /// `Request::Usage`.
    Usage,
    /// `Request::Freeze` with `halt`, `Request::Thaw` with a time, and a session that goes on over another stream.
    Halt,
    /// `Request::OpenTerminal`, `Request::Terminals`, `Request::Resize` and `Request::CloseTerminal`.
    Terminals,
    /// `Request::Watch`.
    Watch,
    /// `Request::Upload`.
    Upload,
    /// `Request::FeedService` with `close`.
    CloseStdin,
    /// `Request::Dial`, and EOF frames of the agent on the channels that it opens.
    Dial,
    /// `Request::DialSocket`.
    DialSocket,
    /// `Request::File` with searches, replacements, parts of files, files that are handed over, and paths from a user's home.
    FileSearch,
    /// A capability of a newer agent that this build does not know. This build's agent never tells it.
    #[serde(other)]
    Unknown,
}

impl Capability {
    /// The capabilities of this build's agent.
    pub const ALL: &'static [Capability] = &[
        Capability::Configure,
        Capability::Restored,
        Capability::Trial,
        Capability::Exec,
        Capability::Services,
        Capability::RunService,
        Capability::FeedService,
        Capability::Processes,
        Capability::Kill,
        Capability::Files,
        Capability::Probe,
        Capability::Freeze,
        Capability::GrowRoot,
        Capability::EndProcesses,
        Capability::Shutdown,
        Capability::Usage,
        Capability::Halt,
        Capability::FileSearch,
        Capability::Watch,
        Capability::Upload,
        Capability::CloseStdin,
        Capability::Terminals,
        Capability::Dial,
        Capability::DialSocket,
    ];

    /// The capabilities of agents of interface version 6, which do not tell them.
    pub const OF_VERSION_6: &'static [Capability] = &[
        Capability::Configure,
        Capability::Restored,
        Capability::Exec,
        Capability::Services,
        Capability::RunService,
        Capability::FeedService,
        Capability::Processes,
        Capability::Kill,
        Capability::Files,
        Capability::Probe,
        Capability::Freeze,
        Capability::GrowRoot,
        Capability::EndProcesses,
        Capability::Shutdown,
    ];

    /// True when every agent that this build's host speaks to has it, so that it may be used before the agent has told what
    /// it can do.
    pub fn is_universal(self) -> bool {
        Capability::OF_VERSION_6.contains(&self)
    }
}

/// The capability as the rest of a sentence that begins with "cannot".
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Capability::Configure => "be configured after a boot",
            Capability::Restored => "take a new identity",
            Capability::Trial => "be restored in trial",
            Capability::Exec => "run a command",
            Capability::Services => "keep a command running",
            Capability::RunService => "follow a command from its first byte",
            Capability::FeedService => "write to a command's stdin",
            Capability::Processes => "list processes",
            Capability::Kill => "signal processes",
            Capability::Files => "work on files",
            Capability::Probe => "check readiness",
            Capability::Freeze => "freeze its filesystem",
            Capability::GrowRoot => "grow its filesystem",
            Capability::EndProcesses => "end all processes",
            Capability::Shutdown => "power off",
            Capability::Halt => "stop its processes for a snapshot",
            Capability::Usage => "measure its use of memory, disk and processors",
            Capability::Terminals => "open a terminal",
            Capability::Watch => "watch directories",
            Capability::Upload => "take an upload in parts",
            Capability::CloseStdin => "close a command's stdin",
            Capability::Dial => "open connections to its ports",
            Capability::DialSocket => "open connections to its Unix sockets",
            Capability::FileSearch => "search in files, replace in them, or start at a user's home",
            Capability::Unknown => "do that",
        })
    }
}

/// The capabilities of this build's agent, as it tells them.
pub fn of_this_build() -> BTreeSet<Capability> {
    Capability::ALL.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_builds_agent_can_do_all_that_any_older_one_can_and_names_nothing_unknown() {
        assert_eq!(of_this_build().len(), Capability::ALL.len());
        assert!(Capability::OF_VERSION_6.iter().all(|capability| Capability::ALL.contains(capability)));
        assert!(!Capability::ALL.contains(&Capability::Unknown));
        let told = serde_json::to_string(&of_this_build()).unwrap();
        let read: BTreeSet<Capability> = serde_json::from_str(&told).unwrap();
        assert_eq!(read, of_this_build());
    }
}
