//! Terminals in a running sandbox: the fake's one terminal, which echoes what is typed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, PtySessionInfo, PtyStart, ResizeRequest};
use nullspace_service::{Error, FollowedTerminal, LiveTerminals, Result, TerminalAt, TerminalEvent};
use tokio::sync::mpsc;

use super::Live;
use crate::support::commands::{PIECE, PIECES};

const TERMINAL: &str = "pty_1";
const PID: u32 = 77;

/// Where the events of the followed terminal come from.
pub(crate) type Screen = mpsc::UnboundedSender<Result<TerminalEvent>>;

fn info(cols: u32, rows: u32) -> PtySessionInfo {
    PtySessionInfo { session_id: TERMINAL.into(), pid: PID, cols, rows, exec_id: TERMINAL.into() }
}

fn known(at: &TerminalAt) -> Result<()> {
    match at {
        TerminalAt::Session(id) if id == TERMINAL => Ok(()),
        TerminalAt::Pid(PID) => Ok(()),
        other => Err(Error::new(ErrorResponseCode::NotFound, format!("There is no terminal {other:?}."))),
    }
}

impl Live {
    fn screen(&self, first: &'static [u8]) -> impl futures::Stream<Item = Result<TerminalEvent>> + Send + use<> {
        let (screen, events) = mpsc::unbounded_channel();
        if !first.is_empty() {
            screen.send(Ok(TerminalEvent::Output(Bytes::from_static(first)))).unwrap();
        }
        *self.fake.screen.lock().unwrap() = Some(screen);
        stream::unfold(events, |mut events| async move { events.recv().await.map(|event| (event, events)) })
    }

    fn show(&self, event: TerminalEvent) -> Result<()> {
        let ended = || Error::new(ErrorResponseCode::TransitionConflict, "The process has ended.");
        let screen = self.fake.screen.lock().unwrap().clone().ok_or_else(ended)?;
        screen.send(Ok(event)).map_err(|_| ended())
    }
}

#[async_trait]
impl LiveTerminals for Live {
    async fn open_terminal(self: Arc<Self>, request: PtyStart) -> Result<FollowedTerminal> {
        self.fake.call(format!("{request:?}"));
        let (cols, rows) = (request.cols.unwrap_or(120), request.rows.unwrap_or(30));
        if cols > 1000 {
            return Err(Error::invalid("cols is too large"));
        }
        let events = match request.command.as_deref() {
            Some("much") => {
                let made = Arc::clone(&self.fake.made);
                let pieces = stream::iter(0..PIECES).map(move |_| {
                    made.fetch_add(1, Ordering::SeqCst);
                    Ok(TerminalEvent::Output(vec![b'x'; PIECE].into()))
                });
                pieces.chain(stream::iter([Ok(TerminalEvent::Exit { code: 0 })])).boxed()
            }
            _ => self.screen(b"$ ").boxed(),
        };
        Ok(FollowedTerminal { session: info(cols, rows), lost: 0, events })
    }

    async fn connect_terminal(self: Arc<Self>, at: TerminalAt) -> Result<FollowedTerminal> {
        known(&at)?;
        Ok(FollowedTerminal { session: info(80, 24), lost: 9, events: self.screen(b"kept").boxed() })
    }

    async fn type_into_terminal(&self, pid: u32, data: &[u8]) -> Result<()> {
        known(&TerminalAt::Pid(pid))?;
        match data {
            b"exit\n" => self.show(TerminalEvent::Exit { code: 7 }),
            b"hang" => std::future::pending().await,
            b"stuck" => Err(Error::new(ErrorResponseCode::ExecTimeout, "Nobody reads it.")),
            data => self.show(TerminalEvent::Output(Bytes::copy_from_slice(data))),
        }
    }

    async fn resize_terminal(&self, at: TerminalAt, size: ResizeRequest) -> Result<()> {
        known(&at)?;
        self.fake.call(format!("resize {at:?} {} x {}", size.cols, size.rows));
        Ok(())
    }

    async fn list_terminals(&self) -> Result<Vec<PtySessionInfo>> {
        Ok(vec![info(120, 30)])
    }

    async fn get_terminal(&self, at: TerminalAt) -> Result<PtySessionInfo> {
        known(&at)?;
        Ok(info(120, 30))
    }

    async fn kill_terminal(&self, at: TerminalAt) -> Result<()> {
        known(&at)?;
        self.fake.call(format!("kill {at:?}"));
        // One that nobody follows is killed too.
        let _ = self.show(TerminalEvent::Exit { code: 129 });
        Ok(())
    }
}
