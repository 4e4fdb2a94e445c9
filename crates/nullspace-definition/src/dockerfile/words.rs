//! Words of a Dockerfile: quotes, escapes and variables, read as BuildKit reads them (`frontend/dockerfile/shell` there).
//!
//! ```text
//!   $NAME  ${NAME}  ${NAME:-word}  ${NAME-word}  ${NAME:+word}  ${NAME+word}  ${NAME:?word}  ${NAME?word}
//!   ${NAME#pattern}  ${NAME##pattern}  ${NAME%pattern}  ${NAME%%pattern}  ${NAME/pattern/word}  ${NAME//pattern/word}
//! ```
//! A word in one of these forms may contain all of them again. A text that cannot be read, or would take too long, is
//! [`Unread`]: the caller leaves it to BuildKit.

use super::budget::{Budget, Unread};
use super::glob::Glob;

/// Deepest nesting of substitutions.
const MAX_DEPTH: usize = 32;
/// Longest value, characters.
const MAX_VALUE: usize = 128 * 1024;

/// The replacement of a name without a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// Nothing.
    Empty,
    /// The name as it is written: it may have a value that is not known here.
    Kept,
}

/// The values of variables.
pub(super) struct Variables<'v> {
    /// A name's value.
    pub(super) value: &'v dyn Fn(&str) -> Option<String>,
    /// The replacement of a name without a value.
    pub(super) unset: Unset,
    /// The escape character.
    pub(super) escape: char,
    pub(super) budget: &'v Budget,
}

/// Expands a word: removes its quotes and escapes and replaces its variables.
pub(super) fn expand(text: &str, variables: &Variables<'_>) -> Result<String, Unread> {
    Reader::new(text, variables, false).until(None, false, 0)
}

/// The words of a line, with their quotes and escapes.
pub(super) fn raw_words(line: &str) -> Result<Vec<String>, Unread> {
    let (none, budget) = (|_: &str| None, Budget::default());
    let variables = Variables { value: &none, unset: Unset::Kept, escape: '\\', budget: &budget };
    let mut reader = Reader::new(line, &variables, true);
    reader.until(None, true, 0)?;
    Ok(reader.words.done())
}

/// Splits `A=1 B="two words"` at white space, quotes and escapes kept.
pub(super) fn fields(text: &str, escape: char) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !field.is_empty() {
                fields.push(std::mem::take(&mut field));
            }
            continue;
        }
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // One at the end escapes nothing.
            let Some(next) = chars.next() else { break };
            field.push(c);
            field.push(next);
        } else {
            field.push(c);
        }
    }
    if !field.is_empty() {
        fields.push(field);
    }
    fields
}

struct Reader<'v> {
    chars: Vec<char>,
    at: usize,
    variables: &'v Variables<'v>,
    /// Quotes and escapes stay in the result.
    raw: bool,
    words: Words,
}

impl<'v> Reader<'v> {
    fn new(text: &str, variables: &'v Variables<'v>, raw: bool) -> Self {
        Reader { chars: text.chars().collect(), at: 0, variables, raw, words: Words::default() }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    /// Reads up to `stop`, which is consumed too, or to the end. `raw_escapes`: escapes stay, as patterns need them.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool, depth: usize) -> Result<String, Unread> {
        if depth > MAX_DEPTH {
            return Err(Unread);
        }
        let raw_escapes = raw_escapes || self.raw;
        let mut out = String::new();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok(out);
            }
            match c {
                '$' => {
                    let value = self.dollar(depth)?;
                    if depth == 0 {
                        value.chars().for_each(|c| self.words.add(c));
                    }
                    out.push_str(&value);
                }
                '\'' | '"' => {
                    let quoted = if c == '"' { self.double_quoted(depth)? } else { self.single_quoted()? };
                    if depth == 0 {
                        self.words.add_raw(&quoted);
                    }
                    out.push_str(&quoted);
                }
                _ => {
                    self.at += 1;
                    let from = out.len();
                    if c != self.variables.escape {
                        out.push(c);
                        if depth == 0 {
                            self.words.add(c);
                        }
                    } else {
                        if raw_escapes {
                            out.push(c);
                        }
                        out.extend(self.next());
                        if depth == 0 {
                            self.words.add_raw(out.get(from..).unwrap_or_default());
                        }
                    }
                }
            }
            // A line is as long as its file lets it be.
            if out.len() > MAX_VALUE && !self.raw {
                return Err(Unread);
            }
        }
        self.variables.budget.spend(out.len())?;
        // The end came first.
        if stop.is_some() { Err(Unread) } else { Ok(out) }
    }

    fn single_quoted(&mut self) -> Result<String, Unread> {
        let mut out = String::new();
        let quote = self.next();
        out.extend(quote.filter(|_| self.raw));
        loop {
            let c = self.next().ok_or(Unread)?;
            if c == '\'' {
                out.extend(quote.filter(|_| self.raw));
                return Ok(out);
            }
            out.push(c);
        }
    }

    fn double_quoted(&mut self, depth: usize) -> Result<String, Unread> {
        let mut out = String::new();
        let quote = self.next();
        out.extend(quote.filter(|_| self.raw));
        loop {
            match self.peek().ok_or(Unread)? {
                '"' => {
                    self.at += 1;
                    out.extend(quote.filter(|_| self.raw));
                    return Ok(out);
                }
                '$' => out.push_str(&self.dollar(depth)?),
                c if c == self.variables.escape => {
                    self.at += 1;
                    // Only these are escaped between quotes; an escape before anything else is itself.
                    let special = self.peek().filter(|next| matches!(next, '"' | '$') || *next == c);
                    self.at += usize::from(special.is_some());
                    if self.raw || special.is_none() {
                        out.push(c);
                    }
                    out.extend(special);
                }
                c => {
                    self.at += 1;
                    out.push(c);
                }
            }
            if out.len() > MAX_VALUE {
                return Err(Unread);
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let first = name.is_empty();
            if first && matches!(c, '@' | '*' | '#') {
                self.at += 1;
                return c.to_string();
            }
            let digits = name.starts_with(|c: char| c.is_ascii_digit());
            if !(c.is_alphanumeric() || c == '_') || digits && !c.is_ascii_digit() {
                break;
            }
            self.at += 1;
            name.push(c);
        }
        name
    }

    fn dollar(&mut self, depth: usize) -> Result<String, Unread> {
        let from = self.at;
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.value(&name)?.unwrap_or_else(|| self.unset(from)));
        }
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return Err(Unread);
        }
        let value = self.value(&name)?;
        let mut kind = self.next().ok_or(Unread)?;
        let empty_is_unset = kind == ':';
        if empty_is_unset {
            kind = self.next().ok_or(Unread)?;
        }
        let text = match kind {
            '}' if !empty_is_unset => value.clone().unwrap_or_default(),
            '+' | '-' | '?' => {
                let word = self.until(Some('}'), false, depth + 1)?;
                let set = value.as_ref().filter(|value| !(empty_is_unset && value.is_empty()));
                match (kind, set) {
                    ('+', Some(_)) => word,
                    ('+', None) => String::new(),
                    (_, Some(value)) => value.clone(),
                    ('-', None) => word,
                    // The text is kept, see below; else the build is to fail.
                    _ if value.is_none() && self.variables.unset == Unset::Kept => String::new(),
                    _ => return Err(Unread),
                }
            }
            '#' | '%' if !empty_is_unset => {
                let word = self.until(Some('}'), true, depth + 1)?;
                let (longest, pattern) = word.strip_prefix(kind).map_or((false, word.as_str()), |rest| (true, rest));
                let glob = Glob::parse(pattern)?;
                let value = value.as_deref().unwrap_or_default();
                let budget = self.variables.budget;
                if kind == '#' {
                    glob.without_prefix(value, longest, budget)?
                } else {
                    glob.without_suffix(value, longest, budget)?
                }
            }
            '/' if !empty_is_unset => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.until(Some('/'), true, depth + 1)?;
                let word = self.until(Some('}'), true, depth + 1)?;
                let value = value.as_deref().unwrap_or_default();
                Glob::parse(&pattern)?.replaced(value, &word, all, self.variables.budget)?
            }
            _ => return Err(Unread),
        };
        Ok(if value.is_none() && self.variables.unset == Unset::Kept { self.unset(from) } else { text })
    }

    fn value(&self, name: &str) -> Result<Option<String>, Unread> {
        let value = (self.variables.value)(name);
        self.variables.budget.spend(value.as_ref().map_or(0, String::len))?;
        Ok(value)
    }

    /// The replacement of a name without a value that was written from `from` on.
    fn unset(&self, from: usize) -> String {
        match self.variables.unset {
            Unset::Empty => String::new(),
            Unset::Kept => self.chars.get(from..self.at).unwrap_or_default().iter().collect(),
        }
    }
}

/// Words that are being read. White space in quotes and escapes does not end a word.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    fn add(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn add_raw(&mut self, text: &str) {
        self.word.push_str(text);
    }

    fn done(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expectations are those of BuildKit's `envVarTest` and of its Dockerfile reference.
    #[test]
    fn variables_are_replaced_as_buildkit_does() {
        let value = |name: &str| {
            let values = [("A", "1"), ("E", ""), ("V", "3.19.1"), ("P", "foobarbaz"), ("S", "a b"), ("É", "e")];
            values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        for (text, emptied, kept) in [
            ("x:$A", "x:1", "x:1"),
            ("x:${A}y$A$A", "x:1y11", "x:1y11"),
            ("$B", "", "$B"),
            ("a${B}b", "ab", "a${B}b"),
            ("${B:-2}", "2", "${B:-2}"),
            ("${B-2}", "2", "${B-2}"),
            ("${E:-2}", "2", "2"),
            ("${E-2}", "", ""),
            ("${A:+3}", "3", "3"),
            ("${E:+3}", "", ""),
            ("${E+3}", "3", "3"),
            ("${B+3}", "", "${B+3}"),
            ("${A:?no}", "1", "1"),
            ("${A?no}", "1", "1"),
            ("${B:-${A}}", "1", "${B:-${A}}"),
            ("${E:-${B:-${A}}}", "1", "${B:-${A}}"),
            ("${E:-\"two words\"}", "two words", "two words"),
            ("${V%.*}", "3.19", "3.19"),
            ("${V%%.*}", "3", "3"),
            ("${V#*.}", "19.1", "19.1"),
            ("${V##*.}", "1", "1"),
            ("${P#foo}", "barbaz", "barbaz"),
            ("${P#bar}", "foobarbaz", "foobarbaz"),
            ("${P%ba?}", "foobar", "foobar"),
            ("${P/ba/BA}", "fooBArbaz", "fooBArbaz"),
            ("${P//ba?/x}", "fooxx", "fooxx"),
            ("${P//o/}", "fbarbaz", "fbarbaz"),
            ("${V//./-}", "3-19-1", "3-19-1"),
            ("\"alpine:$A\"", "alpine:1", "alpine:1"),
            ("'alpine:$A'", "alpine:$A", "alpine:$A"),
            ("\"a\\\"b\\$A\\x\"", "a\"b$A\\x", "a\"b$A\\x"),
            ("\\$A", "$A", "$A"),
            ("a\\ b", "a b", "a b"),
            ("$S", "a b", "a b"),
            ("$", "$", "$"),
            ("$$A", "$1", "$1"),
            ("a\\", "a", "a"),
            ("$É", "e", "e"),
        ] {
            for (unset, expected) in [(Unset::Empty, emptied), (Unset::Kept, kept)] {
                let budget = Budget::default();
                let variables = Variables { value: &value, unset, escape: '\\', budget: &budget };
                assert_eq!(expand(text, &variables).as_deref(), Ok(expected), "{text} {unset:?}");
            }
        }
        for text in ["${", "${A", "${}", "${:x}", "${A!x}", "${A:x}", "${B:?no}", "'x", "\"x", "${A:-", "${A/x}"] {
            let budget = Budget::default();
            let variables = Variables { value: &value, unset: Unset::Empty, escape: '\\', budget: &budget };
            assert_eq!(expand(text, &variables), Err(Unread), "{text}");
        }
    }

    #[test]
    fn what_would_take_for_ever_is_not_read() {
        let value = |_: &str| Some("a".repeat(100_000));
        let budget = Budget::default();
        let variables = Variables { value: &value, unset: Unset::Empty, escape: '\\', budget: &budget };
        assert_eq!(expand("$A$A", &variables), Err(Unread), "a value has a limit");
        assert_eq!(expand("${A//a*a*a*b/c}", &variables), Err(Unread), "so has the comparing");
        let deep = "${B:-".repeat(100_000);
        let none = |_: &str| None;
        let variables = Variables { value: &none, unset: Unset::Empty, escape: '\\', budget: &budget };
        assert_eq!(expand(&deep, &variables), Err(Unread), "and the depth");
    }

    #[test]
    fn lines_are_split_with_their_quotes() {
        assert_eq!(
            raw_words("a  'b c' \"d e\" f\\ g"),
            Ok(["a", "'b c'", "\"d e\"", "f\\ g"].map(str::to_owned).into())
        );
        assert_eq!(raw_words("<<\"A B\" x"), Ok(["<<\"A B\"", "x"].map(str::to_owned).into()));
        assert_eq!(raw_words("it's"), Err(Unread));
        assert_eq!(
            fields("A=1 B=\"x y\" C=it\\ is D='x\\' E=", '\\'),
            ["A=1", "B=\"x y\"", "C=it\\ is", "D='x\\'", "E="]
        );
    }
}
