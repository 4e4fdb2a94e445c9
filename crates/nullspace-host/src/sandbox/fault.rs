//! Typed reasons for which a running sandbox ends by itself.

use nullspace_guest::host::AgentError;
use nullspace_vmm::{EndCause, Ended};

/// A fault of a running sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Its machine has ended.
    #[error("the machine ended: {0}")]
    Machine(Ended),
    /// Its machine runs, but the agent's connection is closed.
    #[error("{0}")]
    Agent(AgentError),
}

impl Fault {
    /// The reason's name: in the row, the log and the metric.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Fault::Machine(Ended { cause: EndCause::Guest, .. }) => "guest_ended",
            Fault::Machine(Ended { cause: EndCause::Signal(_), .. }) => "machine_killed",
            Fault::Machine(Ended { cause: EndCause::Vmm, .. }) => "machine_failed",
            Fault::Agent(AgentError::Protocol(_)) => "agent_protocol_violation",
            Fault::Agent(AgentError::Silent { .. }) => "guest_not_answering",
            Fault::Agent(_) => "agent_connection_lost",
        }
    }

    /// The reason for the sandbox's owner, without internals of the host and without text from the guest.
    pub(super) fn shown(&self) -> &'static str {
        match self {
            Fault::Machine(Ended { cause: EndCause::Guest, .. }) => "the guest powered off, rebooted or crashed",
            Fault::Machine(Ended { cause: EndCause::Signal(_), .. }) => "its machine was killed on the host",
            Fault::Machine(Ended { cause: EndCause::Vmm, .. }) => "its machine failed on the host",
            Fault::Agent(AgentError::Protocol(_)) => "the guest disturbed the agent's connection",
            Fault::Agent(AgentError::Silent { .. }) => {
                "the guest stopped answering: halted, frozen or without its agent"
            }
            Fault::Agent(_) => "the connection to the guest's agent was lost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_a_reason_of_its_own_and_repeats_no_word_of_the_guest() {
        let machine = |cause| Fault::Machine(Ended { cause, how: "SECRET".to_owned() });
        let faults = [
            machine(EndCause::Guest),
            machine(EndCause::Signal(9)),
            machine(EndCause::Vmm),
            Fault::Agent(AgentError::Protocol("SECRET".to_owned())),
            Fault::Agent(AgentError::Silent { secs: 30 }),
            Fault::Agent(AgentError::Closed),
        ];
        let codes: std::collections::BTreeSet<_> = faults.iter().map(Fault::code).collect();
        assert_eq!(codes.len(), faults.len());
        assert!(faults.iter().all(|fault| !fault.shown().contains("SECRET")));
    }
}
