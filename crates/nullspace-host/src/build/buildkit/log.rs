//! BuildKit's events in the build's log.
//!
//! ```text
//!   Started ──> cache miss, message     Cached ──> cache hit      Output ──> message (info | warn)
//! ```
//! Secrets of the request are masked in every line of a step's output.

use nullspace_api::{
    RequestSecrets, TemplateBuildLogEntry, TemplateBuildLogEntryCacheReason as CacheReason,
    TemplateBuildLogLevel as Level,
};
use nullspace_buildkit::{Event, Step};
use nullspace_host_interface::{CacheKind, Place, RecordError};
use tokio::sync::mpsc;

use super::super::cache::{Answer, CacheBook};
use super::super::log::BuildLog;
use crate::lines::LastLines;

/// Most events in one transaction.
const TOGETHER: usize = 200;
/// Most lines of all steps in the log.
const MOST_LINES: usize = 20_000;
/// Shortest value that is masked. Shorter ones occur in ordinary text.
const SHORTEST: usize = 6;

/// Writes one BuildKit's events.
pub(super) struct Writer<'a> {
    log: &'a BuildLog,
    cache: &'a CacheBook,
    /// Values to mask, longest first.
    hidden: Vec<String>,
    not_asked: bool,
    lines_left: usize,
    last: LastLines,
}

/// A step as the log names it.
pub(super) fn named(step: &Step) -> String {
    match (&step.stage, step.index, step.total) {
        (Some(stage), Some(index), Some(total)) => format!("[{stage} {index}/{total}] {}", step.what),
        (None, Some(index), Some(total)) => format!("[{index}/{total}] {}", step.what),
        _ => step.what.clone(),
    }
}

fn is_image(step: &Step) -> bool {
    step.what.starts_with("FROM ")
}

fn place(step: &Step) -> Place {
    Place { phase: "build_step", step: step.index.zip(step.total) }
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        log: &'a BuildLog,
        cache: &'a CacheBook,
        secrets: &RequestSecrets,
        not_asked: bool,
    ) -> Writer<'a> {
        let values = secrets.build_secrets.iter().flat_map(|secret| secret.value.expose().lines());
        let mut hidden: Vec<String> =
            values.map(str::trim).filter(|value| value.len() >= SHORTEST).map(str::to_owned).collect();
        hidden.sort_by_key(|value| std::cmp::Reverse(value.len()));
        hidden.dedup();
        Writer { log, cache, hidden, not_asked, lines_left: MOST_LINES, last: LastLines::new("") }
    }

    /// The text without the secrets in it.
    pub(super) fn masked(&self, text: &str) -> String {
        self.hidden.iter().fold(text.to_owned(), |text, hidden| {
            if text.contains(hidden.as_str()) { text.replace(hidden.as_str(), "***") } else { text }
        })
    }

    /// The last lines that steps printed, oldest first.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.last.all()
    }

    /// Writes events until they end.
    pub(super) async fn follow(&mut self, mut events: mpsc::Receiver<Event>) -> Result<(), RecordError> {
        let mut some = Vec::new();
        while events.recv_many(&mut some, TOGETHER).await > 0 {
            let entries = some.drain(..).flat_map(|event| self.entries(event)).collect();
            self.log.append(entries).await?;
        }
        Ok(())
    }

    fn entries(&mut self, event: Event) -> Vec<TemplateBuildLogEntry> {
        match event {
            // An image is not looked up as a step is: whether it was here already does not show.
            Event::Started(step) if step.is_instruction() && is_image(&step) => {
                let message = self.masked(&named(&step));
                vec![self.log.message(place(&step), Level::Info, message)]
            }
            Event::Cached(step) | Event::Done(step, _) if is_image(&step) => Vec::new(),
            Event::Cached(step) if step.is_instruction() => {
                vec![self.looked_up(&step, Answer::Hit, "Cache hit")]
            }
            Event::Started(step) if step.is_instruction() => {
                let looked_up = if self.not_asked {
                    let answer = Answer::Bypass(CacheReason::WholeBuildSkipCache);
                    self.looked_up(&step, answer, "Cache bypassed (skip_cache)")
                } else {
                    self.looked_up(&step, Answer::Miss, "Cache miss")
                };
                let message = self.masked(&named(&step));
                vec![looked_up, self.log.message(place(&step), Level::Info, message)]
            }
            Event::Done(step, took) if step.is_instruction() => {
                // BuildKit's cache has it; the line below says so.
                self.cache.count(CacheKind::Layer, Answer::Stored);
                let message = format!("Step done in {} ms", took.as_millis());
                vec![self.log.message(place(&step), Level::Info, message)]
            }
            Event::Started(step) if step.what.starts_with("exporting") => {
                vec![self.log.message("prepare", Level::Info, "Exporting the image")]
            }
            Event::Output { step, stderr, line } => {
                let line = self.masked(&line);
                self.last.push(&line);
                let level = if stderr { Level::Warn } else { Level::Info };
                let entry = match self.lines_left {
                    0 => return Vec::new(),
                    1 => {
                        let notice = format!("Output beyond {MOST_LINES} lines is not kept");
                        self.log.message(place(&step), Level::Warn, notice)
                    }
                    _ => self.log.message(place(&step), level, line),
                };
                self.lines_left -= 1;
                vec![entry]
            }
            Event::Failed(step, why) if step.is_instruction() => {
                let message = self.masked(&format!("{} failed: {why}", named(&step)));
                vec![self.log.message(place(&step), Level::Error, message)]
            }
            Event::Warning(text) => {
                let message = self.masked(&text);
                vec![self.log.message("build_step", Level::Warn, message)]
            }
            _ => Vec::new(),
        }
    }

    fn looked_up(&self, step: &Step, answer: Answer, said: &str) -> TemplateBuildLogEntry {
        let subject = self.masked(&named(step));
        let message = format!("{said}: {subject}");
        self.cache.note(place(step), CacheKind::Layer, answer, 1, &subject, message)
    }
}
