//! The disguise of an agent: it tells another interface version, or fewer capabilities, and refuses what it does not tell.
//!
//! ```text
//!   initramfs: /disguise ── "6" | "7 files probe" ──> HELLO_ACK: version 6, no capabilities | version 7, all but these
//! ```
//! For tests of hosts that meet older agents. It exists with the feature `disguise` only, in the program
//! `nullspace-init-disguised`, which no guest image has.

use std::sync::OnceLock;

use nullspace_guest::capability::Capability;
use nullspace_guest::message::AgentInfo;

/// Where the initramfs has the disguise. The root lies over it later.
const FILE: &str = "/disguise";

static TEXT: OnceLock<String> = OnceLock::new();

/// Reads the disguise, before the root is entered.
pub(crate) fn find() {
    let _ = TEXT.set(std::fs::read_to_string(FILE).unwrap_or_default());
}

/// What the agent tells in this disguise instead of `info`.
pub(crate) fn wear(info: AgentInfo) -> AgentInfo {
    disguised(info, TEXT.get().map_or("", String::as_str))
}

fn disguised(info: AgentInfo, text: &str) -> AgentInfo {
    let mut words = text.split_whitespace();
    let Some(abi) = words.next().and_then(|word| word.parse().ok()) else { return info };
    let hidden: Vec<&str> = words.collect();
    let told = |capability: &Capability| {
        let name = serde_json::to_value(capability).unwrap_or_default();
        name.as_str().is_some_and(|name| !hidden.contains(&name))
    };
    let capabilities = (abi > 6).then(|| Capability::ALL.iter().copied().filter(told).collect());
    AgentInfo { abi, capabilities, ..info }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nullspace_guest::capability::of_this_build;

    fn info() -> AgentInfo {
        AgentInfo {
            abi: 7,
            kernel: "6".into(),
            boot_id: "b".into(),
            root_ready: true,
            root_error: None,
            capabilities: Some(of_this_build()),
        }
    }

    #[test]
    fn a_disguise_is_a_version_and_what_is_hidden() {
        assert_eq!(disguised(info(), ""), info());
        assert_eq!(disguised(info(), "6\n"), AgentInfo { abi: 6, capabilities: None, ..info() });
        let hidden = disguised(info(), "7 files trial");
        assert!(!hidden.can(Capability::Files) && !hidden.can(Capability::Trial) && hidden.can(Capability::Exec));
        assert_eq!(hidden.capabilities.unwrap().len() + 2, of_this_build().len());
    }
}
