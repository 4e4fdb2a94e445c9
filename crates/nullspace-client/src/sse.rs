//! Server-sent events, parsed from chunks of any size.
//!
//! After the WHATWG HTML standard, "Interpreting an event stream". Lines end in LF, CRLF or CR, also across chunks; a
//! line without a colon is a field without a value; one space after the colon is not part of the value.

use std::collections::VecDeque;

/// Largest line and largest event in bytes. A log entry is one line.
const MAX_EVENT: usize = 16 << 20;

/// An event; or a comment, which only says that the stream is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Event(Event),
    Comment,
}

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// `event`; `message` when there is none.
    pub(crate) kind: String,
    /// `data`, lines joined by LF.
    pub(crate) data: String,
}

/// The stream is not one, or an event is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("an event is larger than {MAX_EVENT} bytes")]
    TooLarge,
    #[error("a line is not UTF-8")]
    NotUtf8,
}

/// An incremental parser.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// The last byte was CR: an LF that follows belongs to it.
    after_cr: bool,
    /// A byte order mark may only start the stream.
    started: bool,
    kind: String,
    data: String,
    has_data: bool,
    ready: VecDeque<Item>,
}

impl Parser {
    /// Take in the next bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ParseError> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            match bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => {
                    self.extend(&bytes[..end])?;
                    self.after_cr = bytes[end] == b'\r';
                    bytes = &bytes[end + 1..];
                    self.end_of_line()?;
                }
                None => {
                    self.extend(bytes)?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The next item that is complete.
    pub(crate) fn next(&mut self) -> Option<Item> {
        self.ready.pop_front()
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        if self.line.len().saturating_add(bytes.len()) > MAX_EVENT {
            return Err(ParseError::TooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_line(&mut self) -> Result<(), ParseError> {
        let line = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&line).map_err(|_| ParseError::NotUtf8)?;
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            self.end_of_event();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.ready.push_back(Item::Comment),
            "event" => self.kind = value.to_owned(),
            "data" => {
                if self.data.len().saturating_add(value.len()) >= MAX_EVENT {
                    return Err(ParseError::TooLarge);
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // `id` repeats the offset that the entry has itself; `retry` is for browsers.
            _ => {}
        }
        Ok(())
    }

    /// An event without data is none.
    fn end_of_event(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let kind = if kind.is_empty() { "message".to_owned() } else { kind };
            self.ready.push_back(Item::Event(Event { kind, data }));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Result<Vec<Item>, ParseError> {
        let mut parser = Parser::default();
        let mut items = Vec::new();
        for chunk in chunks {
            parser.feed(chunk)?;
            items.extend(std::iter::from_fn(|| parser.next()));
        }
        Ok(items)
    }

    fn event(kind: &str, data: &str) -> Item {
        Item::Event(Event { kind: kind.into(), data: data.into() })
    }

    #[test]
    fn the_forms_of_the_standard() {
        for (text, expected) in [
            ("id: 0\nevent: log\ndata: {}\n\n", vec![event("log", "{}")]),
            ("data:x\n\ndata:  x\n\n", vec![event("message", "x"), event("message", " x")]),
            ("data: a\ndata: b\ndata\n\n", vec![event("message", "a\nb\n")]),
            ("data\n\n", vec![event("message", "")]),
            (": heartbeat\n\n:\n\n", vec![Item::Comment, Item::Comment]),
            ("event: log\n\ndata: x\n\n", vec![event("message", "x")]),
            ("unknown: x\nretry: 5\ndata: x\n\n", vec![event("message", "x")]),
            (
                "data: a\r\n\r\ndata: b\r\rdata: c\n\n",
                vec![event("message", "a"), event("message", "b"), event("message", "c")],
            ),
            ("\u{feff}data: x\n\n", vec![event("message", "x")]),
            ("data: x\n\n\u{feff}data: y\n\n", vec![event("message", "x")]),
            ("data: not complete\n", vec![]),
            ("data: a:b: c\n\n", vec![event("message", "a:b: c")]),
        ] {
            assert_eq!(parse(&[text.as_bytes()]).unwrap(), expected, "{text:?}");
        }
        assert_eq!(parse(&[b"data: \xff\n\n"]), Err(ParseError::NotUtf8));
    }

    #[test]
    fn an_endless_line_or_event_is_refused() {
        let chunk = vec![b'x'; 1 << 20];
        let mut parser = Parser::default();
        parser.feed(b"data: ").unwrap();
        let fed = (0..100).take_while(|_| parser.feed(&chunk).is_ok()).count();
        assert_eq!(fed, 15);

        let line = [b"data: ".as_slice(), &chunk, b"\n"].concat();
        let mut parser = Parser::default();
        let fed = (0..100).take_while(|_| parser.feed(&line).is_ok()).count();
        assert_eq!(fed, 15);
    }

    proptest! {
        #[test]
        fn where_chunks_end_makes_no_difference(
            text in "((data|event|id|:|x)?(: ?)?[a-zé\u{1F980}]{0,6}(\n|\r|\r\n)){0,20}",
            cuts in prop::collection::vec(0usize..400, 0..20),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            let whole = parse(&[bytes]);
            prop_assert_eq!(&parse(&chunks), &whole);
            prop_assert_eq!(&parse(&single), &whole);
        }

        #[test]
        fn no_bytes_make_it_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let _ = parse(&chunks);
        }
    }
}
