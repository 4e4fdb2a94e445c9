//! Any byte stream is cut into the same frames however it arrives; frames and messages stay within their limits and survive
//! being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_guest::file::{CopyEntry, FileEntry};
use nullspace_guest::frame::{self, Assembler, Decoder, Frame, FrameError, MAX_MESSAGE, MAX_PAYLOAD, Seek};
use nullspace_guest::message::{AgentInfo, Outcome, Request};
use serde::{Serialize, de::DeserializeOwned};

/// The session of the seeds.
const SESSION: u64 = 7;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[mode, piece], stream)) = bytes.split_first_chunk::<2>() else { return };
    let seek = match mode % 4 {
        0 | 1 => None,
        2 => Some(Seek::Hello),
        _ => Some(Seek::Ack(SESSION)),
    };
    let whole = cut(stream, stream.len().max(1), seek);
    assert_eq!(whole, cut(stream, 1 + usize::from(piece), seek), "frames depend on how the bytes arrive");
    let (frames, _) = whole;
    written_again(&frames);
    let mut assembler = Assembler::default();
    for frame in frames {
        if let Ok(Some(message)) = assembler.push(frame) {
            assert!(message.payload.len() <= MAX_MESSAGE && !message.more);
            message_written_again::<AgentInfo>(&message.payload);
            message_written_again::<Request>(&message.payload);
            message_written_again::<Outcome>(&message.payload);
            message_written_again::<FileEntry>(&message.payload);
            message_written_again::<CopyEntry>(&message.payload);
        }
    }
});

/// All frames before the stream's end or its first breach.
fn cut(stream: &[u8], piece: usize, seek: Option<Seek>) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = seek.map_or_else(Decoder::default, Decoder::seeking);
    let mut frames = Vec::new();
    for piece in stream.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= MAX_PAYLOAD);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn written_again(frames: &[Frame]) {
    let whole = || frames.iter().filter(|frame| !frame.more);
    let mut wire = Vec::new();
    for frame in whole() {
        frame::encode(frame.session, frame.channel, frame.kind, &frame.payload, &mut wire);
    }
    let (again, error) = cut(&wire, 4096, None);
    assert!(error.is_none() && again.iter().eq(whole()), "{error:?}");
}

fn message_written_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&message).expect("it holds nothing that JSON has no form for");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("it was written by us"), message);
    }
}
