//! Splits a stream of bytes into pieces of text, at the limits of characters.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One stream. Holds an incomplete character back until its rest arrives.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// At most three bytes.
    begun: Vec<u8>,
}

impl Text {
    /// The text so far; `None` when there is none yet. If bytes had to be replaced, also the original bytes in base64.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<(String, Option<String>)> {
        let mut whole = std::mem::take(&mut self.begun);
        whole.extend_from_slice(bytes);
        let begun = begun_at_end(&whole);
        self.begun = whole.split_off(whole.len().saturating_sub(begun));
        shown(whole)
    }

    /// Bytes that are held back.
    pub(super) fn held_back(&self) -> u64 {
        self.begun.len() as u64
    }

    /// The rest at the end of the stream.
    pub(super) fn finish(&mut self) -> Option<(String, Option<String>)> {
        shown(std::mem::take(&mut self.begun))
    }
}

fn shown(bytes: Vec<u8>) -> Option<(String, Option<String>)> {
    if bytes.is_empty() {
        return None;
    }
    Some(match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.as_bytes();
            (String::from_utf8_lossy(bytes).into_owned(), Some(STANDARD.encode(bytes)))
        }
    })
}

/// Number of bytes at the end that begin an incomplete character.
fn begun_at_end(bytes: &[u8]) -> usize {
    let tail = bytes.get(bytes.len().saturating_sub(3)..).unwrap_or_default();
    for (at, _) in tail.iter().enumerate() {
        let rest = tail.get(at..).unwrap_or_default();
        // `error_len` is `None` when the input ends within a character.
        if std::str::from_utf8(rest).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none()) {
            return rest.len();
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<(String, bool)> {
        let mut text = Text::default();
        let mut said: Vec<_> = pieces.iter().filter_map(|piece| text.push(piece)).collect();
        said.extend(text.finish());
        said.into_iter().map(|(text, bytes)| (text, bytes.is_some())).collect()
    }

    #[test]
    fn characters_are_never_torn() {
        assert_eq!(all(&[b"a\xe2", b"\x82", b"\xacb"]), [("a".to_owned(), false), ("\u{20ac}b".to_owned(), false)]);
        assert_eq!(all(&[b"\xf0\x9f\x98", b"\x80"]), [("\u{1f600}".to_owned(), false)]);
        assert_eq!(all(&[b"a\xff"]), [("a\u{fffd}".to_owned(), true)]);
        assert_eq!(all(&[b"a\xe2\x82"]), [("a".to_owned(), false), ("\u{fffd}".to_owned(), true)]);
        assert_eq!(all(&[b"", b""]), []);
    }

    proptest! {
        #[test]
        fn the_very_bytes_can_be_had(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20)) {
            let mut text = Text::default();
            let mut said: Vec<_> = pieces.iter().filter_map(|piece| text.push(piece)).collect();
            said.extend(text.finish());
            let back: Vec<u8> = said
                .into_iter()
                .flat_map(|(text, bytes)| bytes.map_or_else(|| text.into_bytes(), |bytes| STANDARD.decode(bytes).unwrap()))
                .collect();
            prop_assert_eq!(back, pieces.concat());
        }

        #[test]
        fn text_stays_text_however_it_is_cut(text in "\\PC{0,40}", size in 1usize..5) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let said = all(&pieces);
            prop_assert!(said.iter().all(|(_, replaced)| !replaced));
            prop_assert_eq!(said.into_iter().map(|(text, _)| text).collect::<String>(), text);
        }
    }
}
