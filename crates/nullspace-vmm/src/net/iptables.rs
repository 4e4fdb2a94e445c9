//! Rules for machines' packets in another firewall's FORWARD chain.
//!
//! Docker sets the policy of iptables' FORWARD chain to DROP, which no accept in our own table overrules: every base
//! chain of a hook must let a packet pass. So while that policy is DROP, two rules at the chain's end let our machines'
//! packets pass there. Ours is still the table that decides what they may reach: it comes first. They are appended, so
//! that an administrator's own rules come before them. Docker may start after this service, so the policy is checked
//! again every ten seconds.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::VmmError;

use super::commands;

/// Between two looks at the policy.
const EVERY: Duration = Duration::from_secs(10);
/// More copies of our rules than this nobody made.
const MAX_COPIES: usize = 8;

/// The state of the chain, as far as it is known.
#[derive(Debug)]
pub(super) struct Iptables {
    program: Option<PathBuf>,
    rules: [Vec<String>; 2],
    placed: bool,
    looked: Option<Instant>,
}

impl Iptables {
    /// For interfaces of this prefix, which is checked letters.
    pub(super) fn new(prefix: &str) -> Self {
        let rule = |text: String| text.split(' ').map(str::to_owned).collect();
        let mark = format!("-m comment --comment nullspace-{prefix} -j ACCEPT");
        Self {
            program: commands::find("iptables", "iptables").ok(),
            rules: [
                rule(format!("-i {prefix}+ {mark}")),
                rule(format!("-o {prefix}+ -m conntrack --ctstate RELATED,ESTABLISHED {mark}")),
            ],
            placed: false,
            looked: None,
        }
    }

    /// Places the rules when the policy is DROP and they are not there. Looks at most every [`EVERY`].
    pub(super) fn keep_open(&mut self) {
        if self.placed || self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        if !self.drops() {
            return;
        }
        self.remove();
        let placed = self.rules.iter().try_for_each(|rule| self.change("-A", rule));
        match placed {
            Ok(()) => {
                self.placed = true;
                tracing::info!("another firewall drops forwarded packets: rules for virtual machines were added to it");
            }
            Err(error) => {
                tracing::warn!(%error, "another firewall drops forwarded packets, and rules could not be added: machines have no network")
            }
        }
    }

    /// Removes our rules, a killed service's too.
    pub(super) fn remove(&mut self) {
        self.placed = false;
        for rule in &self.rules {
            for _ in 0..MAX_COPIES {
                if self.change("-D", rule).is_err() {
                    break;
                }
            }
        }
    }

    fn drops(&self) -> bool {
        // Prints the policy and the rules; the policy is the first line.
        let chain = self.run(["-S", "FORWARD"]);
        chain.is_ok_and(|text| text.lines().next().is_some_and(|line| line == "-P FORWARD DROP"))
    }

    fn change(&self, how: &str, rule: &[String]) -> Result<(), VmmError> {
        self.run([how, "FORWARD"].into_iter().chain(rule.iter().map(String::as_str))).map(drop)
    }

    fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String, VmmError> {
        let Some(program) = &self.program else {
            return Err(VmmError::Unavailable("`iptables` is not installed".into()));
        };
        // -w: wait for others who change rules at the moment.
        commands::run(Command::new(program).args(["-w", "5"]).args(args), "", "iptables")
    }
}
