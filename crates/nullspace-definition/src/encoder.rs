//! The encoding of cache keys.
//!
//! A key is BLAKE3 over parts. Each part is preceded by its length, lists by their count, and options by a flag. So two
//! different inputs never give the same bytes.

use std::collections::BTreeMap;

/// Encodes parts unambiguously.
pub(crate) struct Encoder(blake3::Hasher);

impl Encoder {
    pub(crate) fn new(kind: &str) -> Encoder {
        let mut encoder = Encoder(blake3::Hasher::new());
        encoder.text(kind);
        encoder
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn count(&mut self, count: usize) {
        self.number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.0.update(&[u8::from(flag)]);
    }

    pub(crate) fn option(&mut self, text: Option<&str>) {
        self.flag(text.is_some());
        if let Some(text) = text {
            self.text(text);
        }
    }

    pub(crate) fn optional_number(&mut self, number: Option<u32>) {
        self.flag(number.is_some());
        self.number(number.unwrap_or_default().into());
    }

    pub(crate) fn texts(&mut self, texts: &[String]) {
        self.count(texts.len());
        texts.iter().for_each(|text| self.text(text));
    }

    pub(crate) fn map(&mut self, map: &BTreeMap<String, String>) {
        self.count(map.len());
        for (key, value) in map {
            self.text(key);
            self.text(value);
        }
    }

    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_part_ends_is_never_in_doubt() {
        let encoded = |parts: &[&str]| {
            let mut key = Encoder::new("test");
            parts.iter().for_each(|part| key.text(part));
            key.finish()
        };
        assert_ne!(encoded(&["ab", "c"]), encoded(&["a", "bc"]));
        assert_ne!(encoded(&["abc"]), encoded(&["abc", ""]));
        let lists = |one: &[&str], two: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            let mut key = Encoder::new("test");
            key.texts(&owned(one));
            key.texts(&owned(two));
            key.finish()
        };
        assert_ne!(lists(&["a", "b"], &[]), lists(&["a"], &["b"]));
        assert_ne!(lists(&["a"], &["b"]), lists(&[], &["a", "b"]));
    }
}
