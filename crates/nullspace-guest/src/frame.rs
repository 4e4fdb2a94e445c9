//! Frames: a fixed header, then at most [`MAX_PAYLOAD`] bytes.
//!
//! ```text
//!  0        4                 12        16    17     18   20      24
//!  | magic  |     session     | channel | kind| flags|  0 |  len  | payload ...
//!    u32 LE      u64 LE          u32 LE   u8    u8    u16   u32 LE
//! ```
//!
//! A message (OPEN, REPLY, END, HELLO_ACK) may take several frames: all but its last carry the `MORE` flag, and nothing
//! else stands between them. Process output and stdin travel under credit: the sender of a direction starts with
//! [`INITIAL_WINDOW`] and spends [`cost`] of each data frame; WINDOW frames give credit back as the receiver consumes.
//! Empty frames cost too, so that credit bounds the receiver's memory and not only its bytes.

use bytes::{Buf, Bytes, BytesMut};

/// First word of every frame.
pub const MAGIC: u32 = 0x3153_4e9d;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 24;
/// Most bytes that one frame carries.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Most bytes of one message over all its frames.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Most channels open at a time in one session, without those of connections to ports.
pub const MAX_CHANNELS: usize = 64;
/// Most connections to ports open at a time in one session. Each is a channel.
pub const MAX_DIALLED: usize = 256;
/// Credit that a direction of a channel starts with, unless the channel is a connection to a port.
pub const INITIAL_WINDOW: u32 = 256 * 1024;
/// Credit that a direction of a connection to a port starts with. It bounds what a connection whose reader has stopped costs, in
/// the guest and on the host: [`MAX_DIALLED`] of them cost 16 MiB at each end.
pub const DIAL_WINDOW: u32 = 64 * 1024;
/// Most bytes of a connection in one frame: a part of its credit, so that several frames are under way at a time.
pub const DIAL_PIECE: usize = 16 * 1024;
/// Credit that a data frame costs in addition to its bytes.
pub const FRAME_COST: u32 = 64;

const MORE: u8 = 1;

/// The kind of a frame. `Window` carries the credit given back, as u32 LE, for the direction towards its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Host: this session begins; repeated until acknowledged. On another stream it begins a session that the host names anew,
    /// or continues one that a `Freeze` with `halt` has stopped: its channels go on, and no frame is lost.
    Hello = 1,
    /// Guest: the session is adopted; `AgentInfo`.
    HelloAck = 2,
    /// Host: a channel begins; `Request`. Channel numbers rise within a session; a number seen before is ignored.
    Open = 3,
    /// Guest: the operation has begun; `Outcome`.
    Reply = 4,
    /// Host: bytes for the process.
    Stdin = 5,
    /// Guest: bytes of the process.
    Stdout = 6,
    /// Guest: bytes of the process.
    Stderr = 7,
    /// Either: more credit.
    Window = 8,
    /// Host: stdin ends here. Guest: the peer of a connection to a port has ended its direction; on no other channel.
    Eof = 9,
    /// Guest: the channel is over; `Outcome`.
    End = 10,
    /// Host: give the channel up; the agent kills what runs in it and answers nothing.
    Reset = 11,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::HelloAck,
            3 => Kind::Open,
            4 => Kind::Reply,
            5 => Kind::Stdin,
            6 => Kind::Stdout,
            7 => Kind::Stderr,
            8 => Kind::Window,
            9 => Kind::Eof,
            10 => Kind::End,
            11 => Kind::Reset,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The number that the host drew for this session.
    pub session: u64,
    /// Channel, 0 for the session's own frames.
    pub channel: u32,
    /// Its kind.
    pub kind: Kind,
    /// True when the message goes on in the next frame.
    pub more: bool,
    /// Its bytes, at most [`MAX_PAYLOAD`].
    pub payload: Bytes,
}

impl Frame {
    /// The credit in a `Window` frame; `None` when it is malformed.
    pub fn window(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.as_ref().try_into().ok()?))
    }
}

/// Breaches of the frame format, which no honest peer commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame does not start with [`MAGIC`].
    #[error("a frame starts with {found:#010x}")]
    Magic {
        /// The word found instead.
        found: u32,
    },
    /// The kind, the flags or the reserved bytes are unknown.
    #[error("a frame has kind {kind}, flags {flags:#04x}")]
    Kind {
        /// The kind's byte.
        kind: u8,
        /// The flags' byte.
        flags: u8,
    },
    /// A frame or a message is longer than allowed.
    #[error("{bytes} bytes are announced, more than {limit}")]
    TooLong {
        /// Announced or gathered bytes.
        bytes: usize,
        /// [`MAX_PAYLOAD`] or [`MAX_MESSAGE`].
        limit: usize,
    },
    /// A message was cut by a frame that does not belong to it.
    #[error("a message of channel {channel} is cut short by another frame")]
    Cut {
        /// The unfinished message's channel.
        channel: u32,
    },
}

/// Returns the credit that a data frame of `len` bytes costs its sender.
pub fn cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
}

/// Returns the bytes that a data frame may carry with `credit` left: at most [`MAX_PAYLOAD`], 0 when not even one.
pub fn affordable(credit: u32) -> usize {
    (credit.saturating_sub(FRAME_COST) as usize).min(MAX_PAYLOAD)
}

/// Appends one frame. `payload` must be at most [`MAX_PAYLOAD`] bytes: longer ones are for [`encode_message`].
pub fn encode(session: u64, channel: u32, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    encode_part(session, channel, kind, false, payload, out);
}

/// Appends a message in as many frames as it needs. The receiver refuses more than [`MAX_MESSAGE`] bytes.
pub fn encode_message(session: u64, channel: u32, kind: Kind, message: &[u8], out: &mut Vec<u8>) {
    let mut rest = message;
    while rest.len() > MAX_PAYLOAD {
        let (part, tail) = rest.split_at(MAX_PAYLOAD);
        encode_part(session, channel, kind, true, part, out);
        rest = tail;
    }
    encode_part(session, channel, kind, false, rest, out);
}

/// Appends a WINDOW frame.
pub fn encode_window(session: u64, channel: u32, credit: u32, out: &mut Vec<u8>) {
    encode(session, channel, Kind::Window, &credit.to_le_bytes(), out);
}

fn encode_part(session: u64, channel: u32, kind: Kind, more: bool, payload: &[u8], out: &mut Vec<u8>) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    out.reserve(HEADER_LEN + payload.len());
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&channel.to_le_bytes());
    out.extend_from_slice(&[kind as u8, if more { MORE } else { 0 }, 0, 0]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

struct Header {
    session: u64,
    channel: u32,
    kind: Kind,
    more: bool,
    len: usize,
}

fn parse_header(raw: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
    let mut at = &raw[..];
    let magic = at.get_u32_le();
    let session = at.get_u64_le();
    let channel = at.get_u32_le();
    let (kind_byte, flags, reserved) = (at.get_u8(), at.get_u8(), at.get_u16_le());
    let len = at.get_u32_le() as usize;
    if magic != MAGIC {
        return Err(FrameError::Magic { found: magic });
    }
    let kind = match Kind::from_byte(kind_byte) {
        Some(kind) if flags & !MORE == 0 && reserved == 0 => kind,
        _ => return Err(FrameError::Kind { kind: kind_byte, flags }),
    };
    if len > MAX_PAYLOAD {
        return Err(FrameError::TooLong { bytes: len, limit: MAX_PAYLOAD });
    }
    Ok(Header { session, channel, kind, more: flags & MORE != 0, len })
}

/// The frame at which a decoder stops skipping bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Guest: the next HELLO, of whatever session.
    Hello,
    /// Host: HELLO_ACK of this session.
    Ack(u64),
}

impl Seek {
    fn wants(self, header: &Header) -> bool {
        header.channel == 0
            && match self {
                Seek::Hello => header.kind == Kind::Hello,
                Seek::Ack(session) => header.kind == Kind::HelloAck && header.session == session,
            }
    }
}

/// Cuts a byte stream into frames. Holds at most one frame and one read beyond it when the caller takes frames after
/// each [`Decoder::feed`]. Never panics, whatever the bytes are.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    seek: Option<Seek>,
}

impl Decoder {
    /// A decoder that skips bytes until the frame that `seek` names.
    pub fn seeking(seek: Seek) -> Decoder {
        Decoder { buffer: BytesMut::new(), seek: Some(seek) }
    }

    /// Skips from here on until the frame that `seek` names. Bytes already fed are searched too.
    pub fn seek(&mut self, seek: Seek) {
        self.seek = Some(seek);
    }

    /// Forgets what was fed and seeks: the stream has begun anew.
    pub fn restart(&mut self, seek: Seek) {
        self.buffer.clear();
        self.seek = Some(seek);
    }

    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` when more bytes are needed. After an error the stream is only good for
    /// [`Decoder::seek`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.seek.is_some() {
                self.skip_to_magic();
            }
            let Some(raw) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
            let header = match (parse_header(raw), self.seek) {
                (Ok(header), None) => header,
                (Ok(header), Some(seek)) if seek.wants(&header) => header,
                (Err(error), None) => {
                    // Past this word, so that a following `seek` does not stop at the same bytes for ever.
                    self.buffer.advance(1);
                    return Err(error);
                }
                (_, Some(_)) => {
                    self.buffer.advance(1);
                    continue;
                }
            };
            if self.buffer.len() - HEADER_LEN < header.len {
                return Ok(None);
            }
            self.seek = None;
            self.buffer.advance(HEADER_LEN);
            // A copy: a slice would pin the whole read buffer for as long as the smallest frame of it lives.
            let payload = Bytes::copy_from_slice(&self.buffer[..header.len]);
            self.buffer.advance(header.len);
            return Ok(Some(Frame {
                session: header.session,
                channel: header.channel,
                kind: header.kind,
                more: header.more,
                payload,
            }));
        }
    }

    fn skip_to_magic(&mut self) {
        let magic = MAGIC.to_le_bytes();
        let skip = self.buffer.windows(magic.len()).position(|window| window == magic);
        // Without a hit the last three bytes may still be the start of one.
        let skip = skip.unwrap_or_else(|| self.buffer.len().saturating_sub(magic.len() - 1));
        self.buffer.advance(skip);
    }
}

/// Joins the frames of a message.
#[derive(Debug, Default)]
pub struct Assembler {
    part: Option<Frame>,
    gathered: Vec<u8>,
}

impl Assembler {
    /// Takes a frame; gives back whole messages (and data frames, which are always whole).
    pub fn push(&mut self, frame: Frame) -> Result<Option<Frame>, FrameError> {
        if let Some(part) = &self.part
            && (part.channel, part.kind, part.session) != (frame.channel, frame.kind, frame.session)
        {
            let channel = part.channel;
            self.clear();
            return Err(FrameError::Cut { channel });
        }
        if !frame.more && self.part.is_none() {
            return Ok(Some(frame));
        }
        let bytes = self.gathered.len() + frame.payload.len();
        if bytes > MAX_MESSAGE {
            self.clear();
            return Err(FrameError::TooLong { bytes, limit: MAX_MESSAGE });
        }
        self.gathered.extend_from_slice(&frame.payload);
        if frame.more {
            self.part.get_or_insert(Frame { payload: Bytes::new(), ..frame });
            return Ok(None);
        }
        self.part = None;
        Ok(Some(Frame { payload: Bytes::from(std::mem::take(&mut self.gathered)), ..frame }))
    }

    /// Drops an unfinished message.
    pub fn clear(&mut self) {
        self.part = None;
        self.gathered = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1u8..=11).prop_map(|byte| Kind::from_byte(byte).unwrap())
    }

    fn frames() -> impl Strategy<Value = Frame> {
        (any::<u64>(), any::<u32>(), kinds(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(
            |(session, channel, kind, payload)| Frame { session, channel, kind, more: false, payload: payload.into() },
        )
    }

    fn drain(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(sent in prop::collection::vec(frames(), 0..8), step in 1usize..400) {
            let mut wire = Vec::new();
            for frame in &sent {
                encode(frame.session, frame.channel, frame.kind, &frame.payload, &mut wire);
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in wire.chunks(step) {
                decoder.feed(piece);
                got.extend(drain(&mut decoder));
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_pile_up(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20), seek in any::<bool>()) {
            let mut decoder = if seek { Decoder::seeking(Seek::Ack(7)) } else { Decoder::default() };
            for piece in pieces {
                decoder.feed(&piece);
                while let Ok(Some(_)) | Err(_) = decoder.next_frame() {}
                prop_assert!(decoder.buffer.len() < HEADER_LEN + MAX_PAYLOAD);
            }
        }

        #[test]
        fn the_host_finds_its_ack_behind_any_remains(before in prop::collection::vec(any::<u8>(), 0..2000), old in frames(), cut in 0usize..300) {
            let mut wire = before;
            let mut half = Vec::new();
            encode(old.session, old.channel, old.kind, &old.payload, &mut half);
            half.truncate(cut);
            wire.extend(half);
            encode(9, 0, Kind::HelloAck, b"{}", &mut wire);
            encode(9, 1, Kind::Reply, b"x", &mut wire);
            prop_assume!(old.session != 9);
            let mut decoder = Decoder::seeking(Seek::Ack(9));
            let mut got = Vec::new();
            for piece in wire.chunks(97) {
                decoder.feed(piece);
                got.extend(drain(&mut decoder));
            }
            prop_assert_eq!(got.iter().map(|f| f.kind).collect::<Vec<_>>(), vec![Kind::HelloAck, Kind::Reply]);
        }

        #[test]
        fn long_messages_are_joined(len in 0usize..(MAX_PAYLOAD * 3)) {
            let message: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut wire = Vec::new();
            encode_message(1, 2, Kind::Open, &message, &mut wire);
            let mut decoder = Decoder::default();
            decoder.feed(&wire);
            let mut assembler = Assembler::default();
            let mut whole = drain(&mut decoder).into_iter().filter_map(|f| assembler.push(f).unwrap());
            let frame = whole.next().unwrap();
            prop_assert_eq!((frame.channel, frame.kind, &frame.payload[..]), (2, Kind::Open, &message[..]));
            prop_assert!(whole.next().is_none());
        }
    }

    #[test]
    fn a_message_without_an_end_is_refused() {
        let mut assembler = Assembler::default();
        let part =
            Frame { session: 1, channel: 1, kind: Kind::Open, more: true, payload: Bytes::from(vec![0; MAX_PAYLOAD]) };
        let pushed: Vec<_> = (0..17).map(|_| assembler.push(part.clone())).collect();
        assert_eq!(pushed[15], Ok(None));
        assert_eq!(pushed[16], Err(FrameError::TooLong { bytes: 17 * MAX_PAYLOAD, limit: MAX_MESSAGE }));
        assert!(assembler.gathered.is_empty());
    }

    #[test]
    fn a_message_cut_by_another_frame_is_refused() {
        let mut assembler = Assembler::default();
        let frame = |channel, more| Frame { session: 1, channel, kind: Kind::Open, more, payload: Bytes::new() };
        assert_eq!(assembler.push(frame(1, true)), Ok(None));
        assert_eq!(assembler.push(frame(2, false)), Err(FrameError::Cut { channel: 1 }));
    }

    #[test]
    fn credit_is_spent_by_empty_frames_too() {
        assert_eq!(cost(0), FRAME_COST);
        assert_eq!(affordable(FRAME_COST), 0);
        assert_eq!(affordable(u32::MAX), MAX_PAYLOAD);
        assert!(cost(affordable(1000)) <= 1000);
    }
}
