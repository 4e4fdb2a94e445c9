//! One stream to the host: frames in, frames out.

use std::sync::Arc;

use nullspace_guest::frame::{Assembler, Decoder, Kind, MAX_PAYLOAD, Seek};

use crate::agent::Agent;
use crate::outbox::Outbox;
use crate::session::Session;
use crate::stream::{Input, Stream};

/// Serves the agent on a stream until the stream is over. Processes of its last session run on until the next session.
pub fn serve(agent: &Arc<Agent>, stream: &Arc<Stream>) -> std::io::Result<()> {
    let outbox = Arc::new(Outbox::default());
    let writer = {
        let (outbox, stream) = (outbox.clone(), stream.clone());
        std::thread::Builder::new().name("writer".into()).spawn(move || {
            while let Some(batch) = outbox.take() {
                if stream.write_all(&batch).is_err() {
                    break;
                }
            }
            outbox.close();
        })?
    };
    let result = read(agent, stream, &outbox);
    outbox.close();
    stream.shut_down();
    // It may be held up in a write to a port whose host is away; it ends with the port.
    drop(writer);
    result
}

fn read(agent: &Arc<Agent>, stream: &Stream, outbox: &Arc<Outbox>) -> std::io::Result<()> {
    let mut decoder = Decoder::seeking(Seek::Hello);
    let mut assembler = Assembler::default();
    let mut session: Option<Arc<Session>> = None;
    let mut piece = vec![0; MAX_PAYLOAD];
    let mut away = false;
    loop {
        let input = stream.read(&mut piece, away)?;
        away = input == Input::Away;
        match input {
            Input::Bytes(len) => decoder.feed(piece.get(..len).unwrap_or_default()),
            Input::Away => {
                // What the host had half sent will never be completed: its next connection is a new session.
                decoder.restart(Seek::Hello);
                assembler.clear();
                continue;
            }
            Input::Over => return Ok(()),
        }
        loop {
            let frame = match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) if frame.kind == Kind::Hello => {
                    assembler.clear();
                    session = Some(agent.hello(frame.session, outbox));
                    continue;
                }
                Ok(Some(frame)) => assembler.push(frame),
                Err(error) => Err(error),
            };
            match (frame, &session) {
                (Ok(Some(frame)), Some(session)) if frame.session == session.id() => agent.take(session, &frame),
                (Ok(_), _) => {}
                (Err(error), _) => {
                    crate::log::problem(format_args!("from the host: {error}; waiting for its next session"));
                    decoder.seek(Seek::Hello);
                    assembler.clear();
                }
            }
        }
    }
}
