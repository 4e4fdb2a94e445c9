//! Answers with long texts, escaped piece by piece while they are sent. JSON may be six times as long as its texts, and a
//! client may read it slowly.

use std::io;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream;
use serde_json::{Map, Value};

use crate::budget::Room;
use crate::error::Refusal;

/// Texts that are shorter together are sent at once, with their length.
const SHORT: usize = 64 << 10;
/// Bytes of a text that are escaped at a time. A multiple of three, so that base64 has no padding in the middle.
const PIECE: usize = 24 << 10;

/// A long value.
pub(crate) enum Long {
    /// As a JSON string.
    Text(String),
    /// As a JSON string of base64.
    Base64(Vec<u8>),
}

impl Long {
    fn len(&self) -> usize {
        match self {
            Long::Text(text) => text.len(),
            Long::Base64(bytes) => bytes.len(),
        }
    }

    /// The JSON of the part from `at` on, and the start of the next part.
    fn piece(&self, at: usize) -> (Vec<u8>, usize) {
        let end = at.saturating_add(PIECE).min(self.len());
        match self {
            Long::Text(text) => {
                let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
                // A string serialises always; the quotes are not this piece's.
                let mut json = serde_json::to_vec(text.get(at..end).unwrap_or_default()).unwrap_or_default();
                json.pop();
                json.drain(..json.len().min(1));
                (json, end)
            }
            Long::Base64(bytes) => (STANDARD.encode(bytes.get(at..end).unwrap_or_default()).into_bytes(), end),
        }
    }
}

/// The fields of an answer without the long ones.
pub(crate) fn without(answer: Value, long: &[&str]) -> Result<Map<String, Value>, Refusal> {
    match answer {
        Value::Object(mut fields) => {
            fields.retain(|name, _| !long.contains(&name.as_str()));
            Ok(fields)
        }
        _ => Err(Refusal::internal("an answer that is no object")),
    }
}

/// An object of `fields` and the long ones. The long ones are charged to `room` until they are sent.
pub(crate) fn object(
    fields: Map<String, Value>,
    long: Vec<(&'static str, Long)>,
    room: Room,
) -> Result<Response, Refusal> {
    let mut head = serde_json::to_vec(&fields).map_err(Refusal::internal)?;
    head.pop();
    let short = long.iter().map(|(_, value)| value.len()).sum::<usize>() <= SHORT;
    let mut pieces = Pieces { head: Some((head, fields.is_empty())), long: long.into_iter(), now: None, over: false };
    let body = if short {
        Body::from(pieces.flatten().collect::<Vec<u8>>())
    } else {
        let pieces = std::iter::from_fn(move || {
            let _held = &room;
            pieces.next().map(|piece| Ok::<_, io::Error>(Bytes::from(piece)))
        });
        Body::from_stream(stream::iter(pieces))
    };
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

struct Pieces {
    /// The object's beginning, and whether there is no field in it.
    head: Option<(Vec<u8>, bool)>,
    long: std::vec::IntoIter<(&'static str, Long)>,
    /// The current value, and the position in it.
    now: Option<(Long, usize)>,
    over: bool,
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.over {
            return None;
        }
        if let Some((value, at)) = &mut self.now
            && *at < value.len()
        {
            let (piece, next) = value.piece(*at);
            *at = next;
            return Some(piece);
        }
        let mut piece = Vec::new();
        if self.now.take().is_some() {
            piece.push(b'"');
        }
        let first = match self.head.take() {
            Some((head, empty)) => {
                piece.extend(head);
                empty
            }
            None => false,
        };
        match self.long.next() {
            Some((name, value)) => {
                if !first {
                    piece.push(b',');
                }
                // Names are ours, and need no escaping.
                piece.extend(format!("\"{name}\":\"").into_bytes());
                self.now = Some((value, 0));
            }
            None => {
                piece.push(b'}');
                self.over = true;
            }
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::budget::{Budget, BufferLimits};

    fn said(fields: Value, long: Vec<(&'static str, Long)>) -> Value {
        let budget = Budget::new(BufferLimits { per_tenant: 10, total: 10 });
        let room = budget.room(crate::tests::tenant('a'));
        room.grow(7).unwrap();
        let Value::Object(fields) = fields else { panic!("no object") };
        let response = object(fields, long, room).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
        assert_eq!(budget.held(), 0);
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn short_and_long_texts_are_told_whole() {
        let text = "\0\n\"\\\u{20ac}".repeat(20_000);
        let bytes: Vec<u8> = (0..100_001_u32).map(|at| at as u8).collect();
        let long = vec![
            ("out", Long::Text(text.clone())),
            ("none", Long::Text(String::new())),
            ("raw", Long::Base64(bytes.clone())),
        ];
        let expected = json!({"code": 3, "out": text, "none": "", "raw": STANDARD.encode(bytes)});
        assert_eq!(said(json!({"code": 3}), long), expected);
        assert_eq!(said(json!({}), vec![("a", Long::Text("x".into()))]), json!({"a": "x"}));
        assert_eq!(said(json!({}), Vec::new()), json!({}));
    }

    proptest! {
        #[test]
        fn a_text_is_told_wherever_it_is_cut(text in "\\PC{0,200}", times in 1usize..400) {
            let text = text.repeat(times);
            prop_assert_eq!(said(json!({}), vec![("t", Long::Text(text.clone()))]), json!({"t": text}));
        }
    }
}
