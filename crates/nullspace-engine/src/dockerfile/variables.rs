//! Variables in a Dockerfile's words, and the words that set them.

use std::collections::BTreeMap;

/// `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:+other}`; a name without a value is empty, as with Docker.
pub(super) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at + 1..).unwrap_or_default();
        let value = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        if let Some((inside, after)) = rest.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            rest = after;
            let text = if let Some((name, default)) = inside.split_once(":-") {
                value(name).unwrap_or_else(|| default.to_owned())
            } else if let Some((name, other)) = inside.split_once(":+") {
                value(name).map(|_| other.to_owned()).unwrap_or_default()
            } else {
                value(inside).unwrap_or_default()
            };
            out.push_str(&text);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            out.push_str(&value(name).unwrap_or_default());
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// `A=1 B="two words" C`: names with their values, as ENV, ARG and LABEL write them; also the old `ENV name value`.
pub(super) fn assignments(text: &str) -> Vec<(String, Option<String>)> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut began = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => {
                quote = Some(c);
                began = true;
            }
            (Some(open), _) if c == open => quote = None,
            (None | Some('"'), '\\') => word.extend(chars.next()),
            (None, _) if c.is_whitespace() => {
                if began || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                began = false;
            }
            _ => word.push(c),
        }
    }
    if began || !word.is_empty() {
        words.push(word);
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        })
        .collect()
}
