//! Here-documents. `RUN`, `COPY` and `ADD`, also after `ONBUILD`, may begin any number of them anywhere in their words.
//!
//! ```text
//!   <<NAME    <<-NAME  tabs before the end's name are dropped    <<"NAME"  <<'NAME'  <<N\AME  nothing in it is expanded
//!   3<<NAME   on a descriptor                                    <<<NAME   is the shell's own
//! ```

use super::budget::Budget;
use super::words::{self, Unset, Variables};

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// The line that ends it.
    pub(super) name: String,
    /// True: tabs at the beginning of lines are dropped.
    pub(super) without_tabs: bool,
    /// Its lines.
    pub(super) content: String,
}

impl Document {
    /// Whether this line ends it.
    pub(super) fn ends(&self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        (if self.without_tabs { line.trim_start_matches('\t') } else { line }) == self.name
    }
}

/// The documents that an instruction's words begin, in order, still empty. `joined` is its whole line.
pub(super) fn begun(joined: &str) -> Vec<Document> {
    if !joined.contains("<<") {
        return Vec::new();
    }
    // As with BuildKit, a line whose quotes do not match begins none.
    let words = words::raw_words(joined).unwrap_or_default();
    words.iter().filter_map(|word| document(word)).collect()
}

/// `^(\d*)<<(-?)([^<]*)$`
fn document(word: &str) -> Option<Document> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (without_tabs, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let (none, budget) = (|_: &str| None, Budget::default());
    let variables = Variables { value: &none, unset: Unset::Kept, escape: '\\', budget: &budget };
    let name = words::expand(rest, &variables).ok().filter(|name| !name.is_empty())?;
    Some(Document { name, without_tabs, content: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_any_length_begins_documents() {
        let line = format!("RUN cat <<EOF {}", "x".repeat(300_000));
        assert_eq!(words::raw_words(&line).unwrap().iter().filter_map(|word| document(word)).count(), 1);
    }

    #[test]
    fn words_begin_documents() {
        for (word, name, without_tabs) in [
            ("<<EOF", "EOF", false),
            ("<<-EOF", "EOF", true),
            ("<<\"EOF\"", "EOF", false),
            ("<<'E OF'", "E OF", false),
            ("<<-'EOF'", "EOF", true),
            ("<<E\\OF", "EOF", false),
            ("3<<EOF", "EOF", false),
            ("<<EOF.txt", "EOF.txt", false),
            ("<<$X", "$X", false),
        ] {
            let found = document(word).unwrap_or_else(|| panic!("{word}"));
            assert_eq!((found.name.as_str(), found.without_tabs), (name, without_tabs), "{word}");
        }
        for word in ["<<", "<<-", "<<<EOF", "a<<EOF", "<EOF", "<<''", "$((1<<2))"] {
            assert_eq!(document(word), None, "{word}");
        }
    }
}
