//! Entries of a context, named by a path or by a pattern of Go's `filepath.Match`, as in Docker. A `*` matches within one
//! part of a path.

use std::collections::{BTreeMap, BTreeSet};

/// Whether it has special characters of a pattern.
pub(crate) fn is_pattern(source: &str) -> bool {
    source.contains(['*', '?', '['])
}

/// A source without `.`, empty parts and slashes at its ends; empty for the whole context.
fn tidy(source: &str) -> String {
    source.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// The entries and folders that a source names, in the order of their paths. An entry of exactly this name has precedence
/// over the pattern.
pub(crate) fn named<V>(entries: &BTreeMap<String, V>, source: &str) -> Vec<String> {
    let path = tidy(source);
    let folder = format!("{path}/");
    let inside = || entries.range(folder.clone()..).next().is_some_and(|(name, _)| name.starts_with(&folder));
    if path.is_empty() || entries.contains_key(&path) || inside() {
        return vec![path];
    }
    if !is_pattern(&path) {
        return Vec::new();
    }
    let parts = path.split('/').count();
    let mut found = BTreeSet::new();
    for name in entries.keys() {
        // Folders need not be entries of their own.
        let Some(head) = head(name, parts) else { continue };
        if !found.contains(head) && path.split('/').zip(head.split('/')).all(|(pattern, part)| fits(pattern, part)) {
            found.insert(head.to_owned());
        }
    }
    found.into_iter().collect()
}

/// The first `parts` parts of a path with at least as many.
fn head(path: &str, parts: usize) -> Option<&str> {
    let mut ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    path.get(..ends.nth(parts.checked_sub(1)?)?)
}

/// Matches one part of a pattern with one part of a path.
fn fits(pattern: &str, part: &str) -> bool {
    let (pattern, part): (Vec<char>, Vec<char>) = (pattern.chars().collect(), part.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(at), part.get(from)) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((at, from + 1));
                at += 1;
                continue;
            }
            (Some(_), Some(&letter)) => letter_fits(&pattern, at, letter),
            _ => None,
        };
        match (step, retry) {
            (Some(next), _) => (at, from) = (next, from + 1),
            (None, Some((star, next))) if next <= part.len() => {
                (at, from) = (star + 1, next);
                retry = Some((star, next + 1));
            }
            (None, _) => return false,
        }
    }
}

/// Whether the pattern's element at `at` matches the letter. Returns the start of the next element.
fn letter_fits(pattern: &[char], at: usize, letter: char) -> Option<usize> {
    match pattern.get(at)? {
        '?' => Some(at + 1),
        '\\' => (*pattern.get(at + 1)? == letter).then_some(at + 2),
        '[' => {
            let mut at = at + 1;
            let negated = pattern.get(at) == Some(&'^');
            at += usize::from(negated);
            let mut inside = false;
            let mut first = true;
            while first || *pattern.get(at)? != ']' {
                first = false;
                let low = bound(pattern, &mut at)?;
                let high = if pattern.get(at) == Some(&'-') {
                    at += 1;
                    bound(pattern, &mut at)?
                } else {
                    low
                };
                inside |= (low..=high).contains(&letter);
            }
            (inside != negated).then_some(at + 1)
        }
        sign => (*sign == letter).then_some(at + 1),
    }
}

/// A letter of a class.
fn bound(pattern: &[char], at: &mut usize) -> Option<char> {
    if pattern.get(*at) == Some(&'\\') {
        *at += 1;
    }
    let letter = *pattern.get(*at)?;
    *at += 1;
    Some(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_gos() {
        for (pattern, part, expected) in [
            ("*", "", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("?", "ä", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[^a-c]x", "dx", true),
            (r"\*", "*", true),
            (r"\*", "x", false),
            (r"[\]]", "]", true),
            ("[a", "a", false),
            ("***a***", "bab", true),
        ] {
            assert_eq!(fits(pattern, part), expected, "{pattern} {part}");
        }
        let long = "a*".repeat(200) + "b";
        assert!(!fits(&long, &"a".repeat(500)));
    }
}
