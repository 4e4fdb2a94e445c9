//! Stages: their bases, the images they use, and the steps of the chosen one.
//!
//! ```text
//!   ARG before the first FROM ──> variables of FROM ──> image or earlier stage
//!   chosen stage and those under it, from the bottom:  ENV, ARG ──> variables of USER, WORKDIR, ENV, ARG
//! ```
//! A variable that an image may set stays as it is written, because images are not inspected here.

use std::collections::BTreeMap;

use nullspace_image_ref::Reference;
use sha2::{Digest, Sha256};

use super::budget::Budget;
use super::instruction::{arguments, command};
use super::parser::{self, Instruction, MAX_FAULTS, Parsed};
use super::words::{self, Unset, Variables};
use super::{Fault, Outline, Step, UsedImage, WITHOUT_EFFECT, fault};
use crate::steps::join;

/// Frontends whose Dockerfiles this module can read.
const DOCKERFILE_FRONTENDS: &[&str] = &["docker/dockerfile", "docker/dockerfile-upstream"];

struct StageOf<'p> {
    base: Base,
    instructions: &'p [Instruction],
}

#[derive(Clone)]
enum Base {
    Stage(usize),
    Image(String),
}

/// Reads a Dockerfile. If it names another frontend and cannot be read here, that frontend decides.
pub(super) fn outline(
    text: &str,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Outline, Vec<Fault>> {
    let syntax = syntax(text);
    let read = parser::parse(text).and_then(|parsed| Reading::new(&parsed, args).outline(target));
    let foreign = syntax.as_deref().filter(|syntax| !DOCKERFILE_FRONTENDS.contains(&repository(syntax)));
    let mut outline = match (read, foreign) {
        (Ok(outline), _) => outline,
        (Err(faults), None) => return Err(faults),
        (Err(_), Some(frontend)) => {
            let what = format!("{frontend} reads this text: what it builds is not known before");
            Outline { warnings: vec![(1, what)], unread: true, ..Outline::default() }
        }
    };
    outline.digest = hex::encode(Sha256::digest(text.as_bytes()));
    outline.syntax = syntax;
    Ok(outline)
}

/// The frontend that a text names: in a directive, or, as in other languages, in a comment with `//` or in JSON.
pub(super) fn syntax(text: &str) -> Option<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let directive =
        parser::directives(text).find(|(_, name, _)| name == "syntax").map(|(_, _, value)| value.to_owned());
    let slashes = || {
        let mut lines = text.lines().map_while(|line| line.strip_prefix("//")?.split_once('='));
        lines.find(|(name, _)| name.trim().eq_ignore_ascii_case("syntax")).map(|(_, value)| value.trim().to_owned())
    };
    let json = || {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        Some(value.get("syntax")?.as_str()?.to_owned())
    };
    // What follows the name are the frontend's arguments.
    let whole = directive.or_else(slashes).or_else(json)?;
    whole.split_whitespace().next().map(str::to_owned)
}

/// An image's name without registry (of Docker Hub), tag and digest.
fn repository(reference: &str) -> &str {
    let name = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

pub(super) struct Reading<'p> {
    pub(super) parsed: &'p Parsed,
    args: &'p BTreeMap<String, String>,
    pub(super) budget: Budget,
    /// Variables of FROM: `ARG` before the first FROM with build arguments over their defaults, and the platform's.
    pub(super) global: BTreeMap<String, String>,
    stages: Vec<StageOf<'p>>,
    /// Stages by name, in lower case. Of two with one name, the later one.
    names: BTreeMap<String, usize>,
    found: Outline,
    faults: Vec<Fault>,
}

impl<'p> Reading<'p> {
    pub(super) fn new(parsed: &'p Parsed, args: &'p BTreeMap<String, String>) -> Self {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let mut global = BTreeMap::new();
        for side in ["TARGET", "BUILD"] {
            global.insert(format!("{side}OS"), "linux".to_owned());
            global.insert(format!("{side}ARCH"), arch.to_owned());
            global.insert(format!("{side}VARIANT"), String::new());
            global.insert(format!("{side}PLATFORM"), format!("linux/{arch}"));
        }
        Reading {
            parsed,
            args,
            budget: Budget::default(),
            global,
            stages: Vec::new(),
            names: BTreeMap::new(),
            found: Outline::default(),
            faults: Vec::new(),
        }
    }

    fn outline(mut self, target: Option<&str>) -> Result<Outline, Vec<Fault>> {
        let parsed = self.parsed;
        let mut froms = parsed.instructions.iter().enumerate().filter(|(_, i)| i.keyword == "FROM").peekable();
        let first = froms.peek().map_or(0, |(at, _)| *at);
        for arg in parsed.instructions.get(..first).unwrap_or_default() {
            self.global_arg(arg);
        }
        while let Some((at, from)) = froms.next() {
            let end = froms.peek().map_or(parsed.instructions.len(), |(next, _)| *next);
            self.stage(from, parsed.instructions.get(at + 1..end).unwrap_or_default());
        }
        let chosen = self.chosen(target);
        let (Some(chosen), true) = (chosen, self.faults.is_empty()) else { return Err(self.faults) };
        self.describe(chosen);
        for instruction in &parsed.instructions {
            if WITHOUT_EFFECT.contains(&instruction.keyword.as_str()) {
                self.found.ignored.push((instruction.keyword.clone(), instruction.line));
            }
        }
        Ok(self.found)
    }

    /// Expands a word of FROM, or of an ARG before it; `None` when only BuildKit can expand it.
    pub(super) fn global_word(&self, text: &str) -> Option<String> {
        let value = |name: &str| self.global.get(name).cloned();
        let variables =
            Variables { value: &value, unset: Unset::Empty, escape: self.parsed.escape, budget: &self.budget };
        words::expand(text, &variables).ok()
    }

    pub(super) fn global_arg(&mut self, arg: &Instruction) {
        for (name, default) in self.pairs(&arg.rest) {
            let value = self.args.get(&name).cloned();
            let default = || default.as_deref().and_then(|text| self.global_word(text));
            if let Some(value) = value.or_else(default) {
                self.global.insert(name, value);
            }
        }
    }

    /// Splits `A=1 B="two words" C` and changes nothing else.
    pub(super) fn pairs(&self, text: &str) -> Vec<(String, Option<String>)> {
        let fields = words::fields(text, self.parsed.escape).into_iter();
        let pair = |field: String| match field.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (field, None),
        };
        fields.map(pair).collect()
    }

    fn stage(&mut self, from: &Instruction, instructions: &'p [Instruction]) {
        let words = from.words();
        let (Some(&written), name) = (words.first(), words.get(2).map(|name| name.to_lowercase())) else { return };
        let reference = self.global_word(written);
        let known = reference.as_deref().unwrap_or(written);
        let base = match self.names.get(&known.to_lowercase()) {
            Some(index) => Base::Stage(*index),
            None => {
                match &reference {
                    None => {
                        self.found.unread = true;
                        let what = "BuildKit alone can say what this FROM names".to_owned();
                        self.found.warnings.push((from.line, what));
                    }
                    Some(name) if name == "scratch" => {}
                    Some(name) => self.used(name, from.line, written.contains('$'), true),
                }
                Base::Image(known.to_owned())
            }
        };
        if let Some(name) = name
            && self.names.insert(name.clone(), self.stages.len()).is_some()
        {
            let what = format!("an earlier stage is named '{name}' too: from here on the name means this one");
            self.found.warnings.push((from.line, what));
        }
        self.stages.push(StageOf { base, instructions });
        for instruction in instructions {
            for from in other_sources(instruction) {
                let is_stage = self.names.contains_key(&from.to_lowercase())
                    || from.parse::<usize>().is_ok_and(|index| index < self.stages.len());
                if from.contains('$') {
                    self.found.unread = true;
                } else if !is_stage && from != "scratch" {
                    self.used(&from, instruction.line, false, false);
                }
            }
        }
    }

    fn used(&mut self, reference: &str, line: u32, variable: bool, is_from: bool) {
        let image = UsedImage { reference: reference.to_owned(), line, variable, is_from };
        if self.faults.len() >= MAX_FAULTS {
            return;
        }
        if reference.is_empty() {
            let what = "the image's name is empty: a variable in it has no value (give build_args)";
            self.faults.push(fault(line, what));
        } else if !image.is_template()
            && let Err(error) = reference.parse::<Reference>()
        {
            self.faults.push(fault(line, format_args!("'{}' is no image: {error}", reference.escape_debug())));
        } else {
            self.found.images.push(image);
        }
    }

    fn chosen(&mut self, target: Option<&str>) -> Option<usize> {
        let Some(target) = target else { return self.stages.len().checked_sub(1) };
        let by_index = || target.parse::<usize>().ok().filter(|index| *index < self.stages.len());
        let found = self.names.get(&target.to_lowercase()).copied().or_else(by_index);
        if found.is_none() {
            let what = format!("is '{}', and no stage has that name", target.escape_debug());
            self.faults.push(Fault { field: "build_target", what });
        }
        found
    }

    /// Describes the base and the steps of a stage, with all stages below it.
    fn describe(&mut self, chosen: usize) {
        let mut chain = vec![chosen];
        let mut at = chosen;
        // A stage stands on earlier ones only: this ends.
        while let Some(stage) = self.stages.get(at) {
            match &stage.base {
                Base::Stage(under) => {
                    chain.push(*under);
                    at = *under;
                }
                Base::Image(image) => {
                    self.found.base = image.clone();
                    break;
                }
            }
        }
        let mut env = BTreeMap::new();
        for index in chain.into_iter().rev() {
            let instructions = self.stages.get(index).map(|stage| stage.instructions).unwrap_or_default();
            self.run(instructions, &mut env);
        }
    }

    /// Runs one stage's instructions, on the environment of the stages below it.
    fn run(&mut self, instructions: &[Instruction], env: &mut BTreeMap<String, String>) {
        let mut args: BTreeMap<String, String> = BTreeMap::new();
        // CMD means something only with the ENTRYPOINT above it; a new ENTRYPOINT drops the CMD before it.
        let (mut entrypoint, mut cmd): (Option<String>, Option<String>) = (None, None);
        for instruction in instructions {
            match instruction.keyword.as_str() {
                "ENV" => {
                    let set = self.assignments(&instruction.rest, env, &args);
                    env.extend(set.clone());
                    self.found.envs.extend(set);
                }
                "ARG" => {
                    for (name, default) in self.pairs(&instruction.rest) {
                        let given = self.args.get(&name).cloned();
                        let default = default.map(|text| self.word(&text, env, &args));
                        if let Some(value) = given.or(default).or_else(|| self.global.get(&name).cloned()) {
                            args.insert(name, value);
                        }
                    }
                }
                "USER" => self.found.user = Some(self.word(&instruction.rest, env, &args)),
                "WORKDIR" => {
                    let path = self.word(&instruction.rest, env, &args);
                    let before = self.found.workdir.as_deref().unwrap_or("/");
                    // One that begins with a variable is absolute as far as anybody knows.
                    self.found.workdir = Some(if path.starts_with('$') { path } else { join(before, &path) });
                }
                "ENTRYPOINT" => {
                    entrypoint = Some(command(instruction));
                    cmd = None;
                }
                "CMD" => cmd = Some(command(instruction)),
                _ => {}
            }
            self.found.steps.push(Step {
                instruction: instruction.keyword.clone(),
                arguments: arguments(instruction),
                line: instruction.line,
            });
        }
        let start: Vec<String> = entrypoint.into_iter().chain(cmd).filter(|line| !line.is_empty()).collect();
        if !start.is_empty() {
            self.found.start = Some(start.join(" "));
        }
    }

    /// Expands a word of a stage. A word that cannot be read stays as it is written.
    fn word(&self, text: &str, env: &BTreeMap<String, String>, args: &BTreeMap<String, String>) -> String {
        let value = |name: &str| env.get(name).or_else(|| args.get(name)).cloned();
        let variables =
            Variables { value: &value, unset: Unset::Kept, escape: self.parsed.escape, budget: &self.budget };
        words::expand(text, &variables).unwrap_or_else(|_| text.to_owned())
    }

    /// The assignments of an ENV: `A=1 B="two words"`, or the old `A two words`.
    pub(super) fn assignments(
        &self,
        text: &str,
        env: &BTreeMap<String, String>,
        args: &BTreeMap<String, String>,
    ) -> Vec<(String, String)> {
        let pairs = self.pairs(text);
        if pairs.first().is_some_and(|(_, value)| value.is_none()) {
            let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            return vec![(self.word(name, env, args), self.word(value.trim(), env, args))];
        }
        let set = |(name, value): (String, Option<String>)| {
            (self.word(&name, env, args), self.word(&value.unwrap_or_default(), env, args))
        };
        pairs.into_iter().map(set).collect()
    }
}

/// The other sources of an instruction: `--from` of COPY and ADD, and `from` of RUN's mounts.
pub(super) fn other_sources(instruction: &Instruction) -> Vec<String> {
    match instruction.keyword.as_str() {
        "COPY" | "ADD" => instruction.flag("from").map(str::to_owned).collect(),
        "RUN" => instruction.flag("mount").filter_map(mounted).collect(),
        _ => Vec::new(),
    }
}

/// `from` of a mount. The options of a mount are a line of CSV.
fn mounted(options: &str) -> Option<String> {
    let mut quoted = false;
    let mut fields = vec![String::new()];
    for c in options.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut()?.push(c),
        }
    }
    fields.iter().find_map(|field| {
        let (name, value) = field.split_once('=')?;
        name.trim().eq_ignore_ascii_case("from").then(|| value.to_owned())
    })
}
