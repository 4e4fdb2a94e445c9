//! BuildKit's status stream as events that a log can show.
//!
//! ```text
//!   vertex: digest, name, started, cached, completed, error  ─┐
//!   log:    vertex, stream, bytes                             ├─> Board ─> Started, Cached, Output, Done, Failed
//! ```
//! A vertex is announced, started and completed in messages that repeat what is known; each event is given once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};

/// Most vertices of one build. Further ones are not shown.
const MAX_VERTICES: usize = 10_000;
/// Longest line that is kept whole, bytes.
const MAX_LINE: usize = 8 * 1024;

/// A step of a build, as BuildKit names it: `[builder 2/4] RUN make`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The stage, when the Dockerfile has several.
    pub stage: Option<String>,
    /// Place in the stage, from 1; none for BuildKit's own work.
    pub index: Option<u32>,
    /// Steps of the stage.
    pub total: Option<u32>,
    /// The action: an instruction of the Dockerfile, or BuildKit's own work.
    pub what: String,
}

/// An event of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step runs.
    Started(Arc<Step>),
    /// A step's result was cached.
    Cached(Arc<Step>),
    /// A step wrote a line.
    Output {
        /// Which.
        step: Arc<Step>,
        /// To its standard error.
        stderr: bool,
        /// Without the line's end.
        line: String,
    },
    /// A step is done.
    Done(Arc<Step>, Duration),
    /// A step failed.
    Failed(Arc<Step>, String),
    /// BuildKit warns of something in the Dockerfile.
    Warning(String),
}

impl Step {
    fn read(name: &str) -> Step {
        let plain = || Step { stage: None, index: None, total: None, what: name.to_owned() };
        let Some((inside, what)) = name.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
            return plain();
        };
        let (stage, place) = inside.rsplit_once(' ').unwrap_or(("", inside));
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let numbers = place.split_once('/').and_then(|(index, total)| Some((number(index)?, number(total)?)));
        let Some((index, total)) = numbers else { return plain() };
        // `linux/amd64 builder`: there is one platform.
        let stage = stage.split_whitespace().next_back().map(str::to_owned);
        Step { stage, index: Some(index), total: Some(total), what: what.to_owned() }
    }

    /// Whether it is an instruction of the Dockerfile.
    pub fn is_instruction(&self) -> bool {
        self.index.is_some()
    }
}

#[derive(Default)]
struct Known {
    step: Option<Arc<Step>>,
    started: bool,
    over: bool,
    /// The incomplete line of each stream.
    pending: [Vec<u8>; 2],
}

/// The state of a build's vertices.
#[derive(Default)]
pub(crate) struct Board {
    vertices: HashMap<String, Known>,
    failed: Option<Arc<Step>>,
}

impl Board {
    /// Adds a message. Returns its events.
    pub(crate) fn apply(&mut self, message: StatusResponse) -> Vec<Event> {
        let mut events = Vec::new();
        let (vertices, over): (Vec<_>, Vec<_>) =
            message.vertexes.into_iter().partition(|vertex| vertex.completed.is_none());
        for vertex in &vertices {
            self.vertex(vertex, &mut events);
        }
        // What a step wrote comes before its end, though both may be in one message.
        let (mut announced, mut ended) = (Vec::new(), Vec::new());
        for vertex in &over {
            self.announce(vertex, &mut announced);
        }
        events.append(&mut announced);
        for log in message.logs {
            self.log(log, &mut events);
        }
        for vertex in &over {
            self.vertex(vertex, &mut ended);
        }
        events.append(&mut ended);
        for warning in message.warnings {
            events.push(Event::Warning(line(&warning.short)));
        }
        events
    }

    /// The step that failed first.
    pub(crate) fn failed(&self) -> Option<Arc<Step>> {
        self.failed.clone()
    }

    fn known(&mut self, digest: &str) -> Option<&mut Known> {
        if !self.vertices.contains_key(digest) && self.vertices.len() >= MAX_VERTICES {
            return None;
        }
        Some(self.vertices.entry(digest.to_owned()).or_default())
    }

    fn announce(&mut self, vertex: &Vertex, events: &mut Vec<Event>) {
        let Some(known) = self.known(&vertex.digest) else { return };
        let step = known.step.get_or_insert_with(|| Arc::new(Step::read(&line(vertex.name.as_bytes()))));
        if vertex.started.is_some() && !vertex.cached && !known.started {
            known.started = true;
            events.push(Event::Started(Arc::clone(step)));
        }
    }

    fn vertex(&mut self, vertex: &Vertex, events: &mut Vec<Event>) {
        self.announce(vertex, events);
        let Some(known) = self.known(&vertex.digest) else { return };
        let Some(step) = known.step.clone() else { return };
        if known.over || (vertex.completed.is_none() && !vertex.cached) {
            return;
        }
        known.over = true;
        for (stderr, pending) in [false, true].into_iter().zip(&mut known.pending) {
            if !pending.is_empty() {
                let line = line(&std::mem::take(pending));
                events.push(Event::Output { step: Arc::clone(&step), stderr, line });
            }
        }
        if vertex.cached {
            events.push(Event::Cached(step));
        } else if vertex.error.is_empty() {
            events.push(Event::Done(step, between(vertex.started.as_ref(), vertex.completed.as_ref())));
        } else {
            // What stood behind a failed step is reported as cancelled.
            if self.failed.is_none() && !vertex.error.contains("context canceled") {
                self.failed = Some(Arc::clone(&step));
            }
            events.push(Event::Failed(step, line(vertex.error.as_bytes())));
        }
    }

    fn log(&mut self, log: VertexLog, events: &mut Vec<Event>) {
        let stderr = log.stream == 2;
        let Some(known) = self.known(&log.vertex) else { return };
        let Some(step) = known.step.clone() else { return };
        let [stdout, other] = &mut known.pending;
        let pending = if stderr { other } else { stdout };
        for piece in log.msg.split_inclusive(|byte| *byte == b'\n') {
            pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || pending.len() >= MAX_LINE {
                let line = line(&std::mem::take(pending));
                events.push(Event::Output { step: Arc::clone(&step), stderr, line });
            }
        }
    }
}

/// Text for a log: what a terminal would show of a line that overwrites itself, without control characters.
fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\n', '\r']);
    let shown = text.rsplit('\r').next().unwrap_or(text);
    shown.chars().filter(|c| !c.is_control() || *c == '\t').take(MAX_LINE).collect()
}

fn between(from: Option<&Timestamp>, to: Option<&Timestamp>) -> Duration {
    let nanos = |at: &Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let took = from.zip(to).map_or(0, |(from, to)| nanos(to) - nanos(from));
    Duration::from_nanos(u64::try_from(took).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn vertex(digest: &str, name: &str) -> Vertex {
        Vertex { digest: digest.to_owned(), name: name.to_owned(), ..Vertex::default() }
    }

    fn log(digest: &str, stream: i64, msg: &str) -> VertexLog {
        VertexLog { vertex: digest.to_owned(), stream, msg: msg.as_bytes().to_vec(), timestamp: None }
    }

    #[test]
    fn names_are_read() {
        let step = Step::read("[builder  2/14] RUN make [x] y");
        let numbers = (step.stage.as_deref(), step.index, step.total);
        assert_eq!((numbers, step.what.as_str()), ((Some("builder"), Some(2), Some(14)), "RUN make [x] y"));
        let step = Step::read("[linux/amd64 stage-1 1/2] FROM x");
        assert_eq!((step.stage.as_deref(), step.index), (Some("stage-1"), Some(1)));
        let step = Step::read("[ 2/14] COPY . .");
        assert_eq!((step.stage.as_deref(), step.index), (None, Some(2)));
        for own in ["[internal] load .dockerignore", "exporting to image", "[x 1/y] a", "[1/2]", "["] {
            let step = Step::read(own);
            assert_eq!((step.what.as_str(), step.is_instruction()), (own, false));
        }
    }

    #[test]
    fn each_event_comes_once_in_its_order() {
        let mut board = Board::default();
        let run = vertex("a", "[2/3] RUN x");
        let first = StatusResponse { vertexes: vec![run.clone(), vertex("b", "[3/3] RUN y")], ..Default::default() };
        assert_eq!(board.apply(first), []);
        let started = Vertex { started: at(5), ..run.clone() };
        let message = StatusResponse {
            vertexes: vec![started.clone(), started.clone()],
            logs: vec![log("a", 1, "one\ntw"), log("a", 2, "err\n"), log("nobody", 1, "x\n")],
            ..Default::default()
        };
        let step = Arc::new(Step::read("[2/3] RUN x"));
        let output = |line: &str, stderr| Event::Output { step: Arc::clone(&step), stderr, line: line.to_owned() };
        assert_eq!(
            board.apply(message),
            [Event::Started(Arc::clone(&step)), output("one", false), output("err", true)]
        );
        let done = Vertex { completed: at(7), ..started };
        let message = StatusResponse {
            vertexes: vec![done.clone(), done],
            logs: vec![log("a", 1, "o\nprogress 1\rprogress 2\nlast")],
            ..Default::default()
        };
        assert_eq!(
            board.apply(message),
            [
                output("two", false),
                output("progress 2", false),
                output("last", false),
                Event::Done(Arc::clone(&step), Duration::from_secs(2))
            ]
        );
        let failed =
            Vertex { started: at(7), completed: at(8), error: "exit code: 1".into(), ..vertex("b", "[3/3] RUN y") };
        let message = StatusResponse { vertexes: vec![failed], ..Default::default() };
        let other = Arc::new(Step::read("[3/3] RUN y"));
        assert_eq!(
            board.apply(message),
            [Event::Started(Arc::clone(&other)), Event::Failed(Arc::clone(&other), "exit code: 1".into())]
        );
        assert_eq!(board.failed(), Some(other));
        let cached = Vertex { started: at(1), completed: at(1), cached: true, ..vertex("c", "[1/3] FROM z") };
        let message = StatusResponse { vertexes: vec![cached.clone(), cached], ..Default::default() };
        assert_eq!(board.apply(message), [Event::Cached(Arc::new(Step::read("[1/3] FROM z")))]);
    }
}
