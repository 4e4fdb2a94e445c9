//! Patterns of `${NAME#pattern}`, `${NAME%pattern}` and `${NAME/pattern/word}`. `*` is any text and `?` any character; an
//! escape makes them ordinary.

use super::budget::{Budget, Unread};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// `*`
    Text,
    /// `?`
    Character,
    Literal(char),
}

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(Vec<Part>);

impl Glob {
    /// Parses a pattern that still has its escapes.
    pub(super) fn parse(text: &str) -> Result<Glob, Unread> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Text,
                '?' => Part::Character,
                '\\' => match chars.next() {
                    Some(next @ ('*' | '?' | '\\' | '}' | '/')) => Part::Literal(next),
                    // BuildKit refuses these.
                    _ => return Err(Unread),
                },
                c => Part::Literal(c),
            });
        }
        Ok(Glob(parts))
    }

    /// The value without the shortest or longest matching prefix.
    pub(super) fn without_prefix(&self, value: &str, longest: bool, budget: &Budget) -> Result<String, Unread> {
        let chars: Vec<char> = value.chars().collect();
        let end = self.end(&chars, longest, budget)?.unwrap_or(0);
        Ok(chars.get(end..).unwrap_or_default().iter().collect())
    }

    /// The value without the shortest or longest matching suffix.
    pub(super) fn without_suffix(&self, value: &str, longest: bool, budget: &Budget) -> Result<String, Unread> {
        let chars: Vec<char> = value.chars().rev().collect();
        let backwards = Glob(self.0.iter().rev().copied().collect());
        let end = backwards.end(&chars, longest, budget)?.unwrap_or(0);
        Ok(chars.get(end..).unwrap_or_default().iter().rev().collect())
    }

    /// The value with the first match, or every match, replaced. Matches are as long as possible.
    pub(super) fn replaced(&self, value: &str, word: &str, all: bool, budget: &Budget) -> Result<String, Unread> {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        while at < chars.len() || chars.is_empty() {
            let rest = chars.get(at..).unwrap_or_default();
            match self.end(rest, true, budget)? {
                // An empty match between characters is nothing that anybody means.
                Some(0) if !chars.is_empty() => return Err(Unread),
                Some(end) => {
                    budget.spend(word.len())?;
                    out.push_str(word);
                    at += end;
                    if !all || chars.is_empty() {
                        break;
                    }
                }
                None => {
                    out.extend(rest.first());
                    at += 1;
                    if chars.is_empty() {
                        break;
                    }
                }
            }
        }
        out.extend(chars.get(at..).unwrap_or_default());
        Ok(out)
    }

    /// The end of the shortest or longest match at the start of the text.
    fn end(&self, text: &[char], longest: bool, budget: &Budget) -> Result<Option<usize>, Unread> {
        let parts = &self.0;
        // Which parts may come next.
        let mut at = vec![false; parts.len() + 1];
        let open = |at: &mut [bool], mut part: usize| {
            while let Some(seen) = at.get_mut(part) {
                *seen = true;
                if parts.get(part) != Some(&Part::Text) {
                    break;
                }
                part += 1;
            }
        };
        open(&mut at, 0);
        let mut found = None;
        for position in 0..=text.len() {
            if at.last() == Some(&true) {
                found = Some(position);
                if !longest {
                    break;
                }
            }
            let Some(&c) = text.get(position) else { break };
            budget.spend(parts.len() + 1)?;
            let mut after = vec![false; at.len()];
            for (part, _) in at.iter().enumerate().filter(|(_, open)| **open) {
                match parts.get(part) {
                    Some(Part::Text) => open(&mut after, part),
                    Some(Part::Character) => open(&mut after, part + 1),
                    Some(Part::Literal(literal)) if *literal == c => open(&mut after, part + 1),
                    _ => {}
                }
            }
            if !after.contains(&true) {
                break;
            }
            at = after;
        }
        Ok(found)
    }
}
