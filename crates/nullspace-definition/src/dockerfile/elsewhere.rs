//! The hosts that a Dockerfile build contacts by itself: registries of images, and hosts of ADD's URLs.
//!
//! BuildKit contacts them from its own network, so they are checked before the build (`nullspace-oci`'s `reach` says how).
//! Only the Dockerfile's text is read here. Other connections are limited by nothing but BuildKit's network: those of a frontend
//! other than Docker's own, of ONBUILD triggers in the images of FROM, of words with variables that cannot be expanded here, of
//! a URL's redirects, of a name that BuildKit resolves to another address, and of RUN.

use std::collections::{BTreeMap, BTreeSet};

use nullspace_image_ref::Reference;

use super::UsedImage;
use super::outline::{Reading, other_sources, syntax};
use super::parser::{self, Instruction};
use super::words::{self, Unset, Variables};

/// A host that a build would contact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A registry, in the form of image references.
    Registry(String),
    /// Scheme, host and port of a URL.
    Url(String),
}

/// The hosts, each with the first line that names it, in no order. `args` are the build arguments.
pub fn elsewhere(text: &str, args: &BTreeMap<String, String>) -> BTreeMap<Host, u32> {
    let mut found = Found::default();
    if let Some((line, frontend)) = frontend(text).or_else(|| Some((1, syntax(text)?))) {
        found.image(&frontend, line);
    }
    if let Some(frontend) = args.get("BUILDKIT_SYNTAX") {
        found.image(frontend, 1);
    }
    // A text that cannot be read is refused before a build of it is accepted, or a frontend of its own reads it.
    let Ok(parsed) = parser::parse(text) else { return found.hosts };
    let mut reading = Reading::new(&parsed, args);
    let mut variables = BTreeMap::new();
    let mut staged = false;
    for instruction in &parsed.instructions {
        match instruction.keyword.as_str() {
            "FROM" => {
                staged = true;
                variables = reading.global.clone();
                let words = instruction.words();
                if let Some(word) = words.first() {
                    // What cannot be expanded, for want of the budget that other words have taken, may name a host all the same.
                    let reference = reading.global_word(word).unwrap_or_else(|| word.to_string());
                    found.image(&reference, instruction.line);
                }
                if let Some(name) = words.get(2) {
                    found.stages.insert(name.to_lowercase());
                }
            }
            "ARG" if !staged => reading.global_arg(instruction),
            _ => {
                // A trigger of a stage runs in the stages upon it.
                let instruction = instruction.trigger.as_deref().unwrap_or(instruction);
                found.instruction(instruction, &reading, &mut variables, args);
            }
        }
    }
    found.hosts
}

/// Expands a word of a stage as BuildKit does. A word that cannot be expanded here stays as it is written.
fn expand(text: &str, reading: &Reading<'_>, variables: &BTreeMap<String, String>) -> String {
    let value = |name: &str| variables.get(name).cloned();
    let (escape, budget) = (reading.parsed.escape, &reading.budget);
    words::expand(text, &Variables { value: &value, unset: Unset::Empty, escape, budget })
        .unwrap_or_else(|_| text.to_owned())
}

#[derive(Default)]
struct Found {
    hosts: BTreeMap<Host, u32>,
    /// Names of stages so far, in lower case.
    stages: BTreeSet<String>,
}

impl Found {
    fn instruction(
        &mut self,
        instruction: &Instruction,
        reading: &Reading<'_>,
        variables: &mut BTreeMap<String, String>,
        args: &BTreeMap<String, String>,
    ) {
        let line = instruction.line;
        match instruction.keyword.as_str() {
            "ARG" => {
                for (name, default) in reading.pairs(&instruction.rest) {
                    let default = default.map(|text| expand(&text, reading, variables));
                    if let Some(value) = args.get(&name).cloned().or(default) {
                        variables.insert(name, value);
                    }
                }
            }
            "ENV" => {
                let set = reading.assignments(&instruction.rest, variables, &BTreeMap::new());
                variables.extend(set);
            }
            "ADD" => {
                let words = instruction.words();
                for source in words.split_last().map_or(&[][..], |(_, sources)| sources) {
                    if let Some(url) = url(&expand(source, reading, variables)) {
                        self.hosts.entry(Host::Url(url)).or_insert(line);
                    }
                }
            }
            _ => {}
        }
        for image in other_sources(instruction) {
            self.image(&expand(&image, reading, variables), line);
        }
    }

    fn image(&mut self, text: &str, line: u32) {
        // Quotes and escapes go when BuildKit reads a word; no reference has one.
        let reference: String = text.chars().filter(|c| !matches!(c, '"' | '\'' | '\\' | '`')).collect();
        let named = reference.to_lowercase();
        if named == "scratch" || self.stages.contains(&named) || named.bytes().all(|b| b.is_ascii_digit()) {
            return;
        }
        let image = UsedImage { reference, line, variable: false, is_from: true };
        if image.is_template() {
            return;
        }
        if let Ok(reference) = image.reference.parse::<Reference>() {
            self.hosts.entry(Host::Registry(reference.registry().to_owned())).or_insert(line);
        }
    }
}

/// The `# syntax=image` in the comments at a Dockerfile's start, with its line.
fn frontend(text: &str) -> Option<(u32, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, text) in (1_u32..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let comment = text.strip_prefix('#').or_else(|| text.strip_prefix("//"))?;
        if let Some((name, value)) = comment.split_once('=')
            && name.trim().eq_ignore_ascii_case("syntax")
        {
            // Flags for the frontend may follow its image.
            return Some((line, value.split_whitespace().next()?.to_owned()));
        }
    }
    None
}

/// Scheme, host and port of a source that is fetched over the network: a URL, or git's `user@host:path`.
fn url(source: &str) -> Option<String> {
    let source: String = source.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
    let Some((scheme, rest)) = source.split_once("://") else {
        let (user, rest) = source.split_once('@')?;
        let (host, _) = rest.split_once(':')?;
        let plain = |text: &str| !text.is_empty() && !text.contains(['/', ' ']);
        return (plain(user) && plain(host)).then(|| format!("http://{host}:22/"));
    };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let port = match scheme.to_ascii_lowercase().as_str() {
        _ if has_port => "",
        "https" => ":443",
        "git" => ":9418",
        "ssh" => ":22",
        "ftp" => ":21",
        _ => ":80",
    };
    // The scheme decides the port alone; as http, a host that is a number in disguise is read as the address it is.
    Some(format!("http://{host}{port}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str, args: &[(&str, &str)]) -> Vec<(String, u32)> {
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let shown = |(host, line)| match host {
            Host::Registry(registry) => (registry, line),
            Host::Url(url) => (url, line),
        };
        elsewhere(text, &args).into_iter().map(shown).collect()
    }

    fn one(text: &str) -> String {
        let found = hosts(text, &[]);
        let [(host, _)] = found.as_slice() else { panic!("{text}: {found:?}") };
        host.clone()
    }

    #[test]
    fn every_image_and_url_is_found_with_its_line() {
        let text = "# syntax=f.example:1/docker/dockerfile:1\nARG R=a.example\nFROM ${R}/x AS Base\n\
                    FROM base\nCOPY --from=base /x /y\nCOPY --from=0 /x /y\nCOPY --from=b.example/x /x /y\n\
                    RUN --mount=type=bind,from=c.example:5000/x,target=/x make\nADD https://d.example/x /x\n\
                    ARG H=e.example\nENV P=:8080\nADD http://${H}${P}/x a.tar /x/\nADD git@g.example:x/y /y\n\
                    ONBUILD ADD git://h.example/x /x\nFROM scratch\nCOPY --from=nullspace/base /x /y\n";
        let found = hosts(text, &[]);
        let wanted = [
            ("a.example", 3),
            ("b.example", 7),
            ("c.example:5000", 8),
            ("f.example:1", 1),
            ("http://d.example:443/", 9),
            ("http://e.example:8080/", 12),
            ("http://g.example:22/", 13),
            ("http://h.example:9418/", 14),
        ];
        assert_eq!(found, wanted.map(|(host, line)| (host.to_owned(), line)));
        let args = [("R", "z.example"), ("H", "y.example"), ("BUILDKIT_SYNTAX", "w.example/f")];
        let found: Vec<String> = hosts(text, &args).into_iter().map(|(host, _)| host).collect();
        for host in ["z.example", "w.example", "http://y.example:8080/"] {
            assert!(found.contains(&host.to_owned()), "{host}: {found:?}");
        }
    }

    #[test]
    fn hosts_are_found_behind_variables_that_take_all_that_reading_may_cost() {
        let doubled: String = (1..40).map(|n| format!("ARG A{n}=$A{m}$A{m}\n", m = n - 1)).collect();
        let text = format!(
            "ARG A0={}\n{doubled}FROM a.example/x\n{doubled}COPY --from=b.example/x /x /y\nADD http://c.example/x /x\n",
            "x".repeat(10_000)
        );
        let found: Vec<String> = hosts(&text, &[]).into_iter().map(|(host, _)| host).collect();
        assert_eq!(found, ["a.example", "b.example", "http://c.example:80/"]);
    }

    #[test]
    fn disguises_are_seen_through() {
        for (text, host) in [
            ("#!/bin/x\n# Syntax = s.example/x a=b\nFROM scratch", "s.example"),
            ("\u{feff}# syntax=s.example/x\nFROM scratch", "s.example"),
            ("# check=skip=all\n# syntax=s.example/x\nFROM scratch", "s.example"),
            ("FROM scratch\nADD http://user:p@s.example/x /x", "http://s.example:80/"),
            ("FROM scratch\nADD http://[::1]/x /x", "http://[::1]:80/"),
            ("FROM scratch\nADD HTTP://s.example#x /x", "http://s.example:80/"),
            ("FROM scratch\nADD [\"https://s.example/a b\", \"/x\"]", "http://s.example:443/"),
        ] {
            assert_eq!(one(text), host, "{text}");
        }
        for text in ["FROM scratch\nADD a@b /x", "FROM scratch\nCOPY http://s.example/x /x", "FROM scratch\nADD a:b /x"]
        {
            assert_eq!(hosts(text, &[]), [], "{text}");
        }
    }
}
