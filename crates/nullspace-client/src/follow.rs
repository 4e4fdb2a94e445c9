//! Following a build's log over connections that may break.
//!
//! ```text
//!   connect ?offset=next&follow=true ──entry──> offset as expected? yield, next + 1 ──terminal entry──> end
//!      ^                                              │ seen before: skip          │ gap: error
//!      └──── wait a little <── broke off, silent for too long, or the service is down for a moment
//! ```

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use nullspace_api::TemplateBuildLogEntry;
use reqwest::{Method, Response};

use crate::sse::{Item, Parser};
use crate::{Client, Error, Result, answered};

const OPERATION: &str = "follow the build";
/// How long the stream may be silent: three heartbeats of the service.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the answer's head may take.
const CONNECT: Duration = Duration::from_secs(30);
/// Waits between attempts double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Attempts in a row that bring nothing new, about half a minute.
const ATTEMPTS: u32 = 10;

/// A build's log, entry by entry; it ends after the entry that ends the build, or after an error.
pub struct BuildLog(BoxStream<'static, Result<TemplateBuildLogEntry>>);

impl Stream for BuildLog {
    type Item = Result<TemplateBuildLogEntry>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for BuildLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BuildLog").finish_non_exhaustive()
    }
}

pub(crate) fn follow(client: Client, build_id: String, offset: u64) -> BuildLog {
    let state = Some(Follower { client, build_id, next: offset, connection: None, failures: 0, last: None });
    BuildLog(
        stream::unfold(state, |state| async move {
            let mut follower = state?;
            match follower.entry().await {
                Ok(entry) => {
                    let state = (!entry.kind.is_terminal()).then_some(follower);
                    Some((Ok(entry), state))
                }
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed(),
    )
}

struct Follower {
    client: Client,
    build_id: String,
    /// Offset of the entry to yield next.
    next: u64,
    connection: Option<(Response, Parser)>,
    /// Attempts since the last sign of life.
    failures: u32,
    last: Option<Box<Error>>,
}

impl Follower {
    async fn entry(&mut self) -> Result<TemplateBuildLogEntry> {
        loop {
            let Some((response, parser)) = &mut self.connection else {
                self.connect().await?;
                continue;
            };
            while let Some(item) = parser.next() {
                // A heartbeat is a sign of life, too.
                self.failures = 0;
                let Item::Event(event) = item else { continue };
                if event.kind != "log" {
                    continue;
                }
                let entry: TemplateBuildLogEntry = serde_json::from_str(&event.data)
                    .map_err(|error| Error::Unreadable { operation: OPERATION, what: error.to_string() })?;
                if entry.offset > self.next {
                    let what = format!("entry {} came where {} was due", entry.offset, self.next);
                    return Err(Error::Unreadable { operation: OPERATION, what });
                }
                if entry.offset == self.next {
                    self.next += 1;
                    return Ok(entry);
                }
            }
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => parser
                    .feed(&bytes)
                    .map_err(|error| Error::Unreadable { operation: OPERATION, what: error.to_string() })?,
                Ok(Ok(None)) => self.broke_off(None)?,
                Ok(Err(source)) => self.broke_off(Some(Error::Transport { operation: OPERATION, source }))?,
                Err(_) => {
                    let what = format!("silent for {} s", SILENCE.as_secs());
                    self.broke_off(Some(Error::Unreadable { operation: OPERATION, what }))?;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<()> {
        if self.failures > 0 {
            let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(LAST_WAIT);
            tokio::time::sleep(wait).await;
        }
        let mut url = self.client.url(&["v1", "templates", "builds", &self.build_id, "logs"])?;
        url.query_pairs_mut().append_pair("offset", &self.next.to_string()).append_pair("follow", "true");
        let request = self.client.request(Method::GET, url);
        let answer = tokio::time::timeout(CONNECT, answered(request, OPERATION)).await.unwrap_or_else(|_| {
            let what = format!("no answer within {} s", CONNECT.as_secs());
            Err(Error::Unreadable { operation: OPERATION, what })
        });
        match answer {
            Ok(response) => {
                self.connection = Some((response, Parser::default()));
                Ok(())
            }
            // The service said no: asking again brings the same.
            Err(error @ Error::Answer { status: 400..=428 | 430..=499 | 501, .. }) => Err(error),
            Err(error) => self.broke_off(Some(error)),
        }
    }

    /// Give up the connection, and everything when that happened too often.
    fn broke_off(&mut self, error: Option<Error>) -> Result<()> {
        self.connection = None;
        self.failures += 1;
        if let Some(error) = error {
            tracing::debug!(%error, offset = self.next, "the build's log broke off");
            self.last = Some(Box::new(error));
        }
        if self.failures > ATTEMPTS {
            return Err(Error::LogBrokeOff { offset: self.next, attempts: ATTEMPTS, last: self.last.take() });
        }
        Ok(())
    }
}
