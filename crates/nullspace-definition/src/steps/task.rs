//! What a step does, as data: whoever has a machine carries it out.

use std::collections::BTreeMap;

use super::copies::Copy;

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<'s> {
    /// Work in the machine, in this order. Such a step is a unit: it is run and cached as one.
    Tasks(Vec<Task<'s>>),
    /// The user of the steps that follow.
    User(&'s str),
    /// The working directory of the steps that follow.
    Workdir(&'s str),
    /// The cache is not asked for the steps that follow.
    CacheBoundary,
}

/// One piece of work in a machine. Paths that are not absolute begin in the unit's working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task<'s> {
    /// Runs a program to its end.
    Run {
        /// The program.
        command: Command,
        /// Who runs it, instead of the unit's user.
        user: Option<&'s str>,
    },
    /// Copies files of the build context.
    Copy(Copy<'s>),
    /// Makes a folder and those above it.
    MakeDir {
        /// The folder.
        path: &'s str,
        /// Its permission bits.
        mode: Option<u32>,
    },
    /// Makes a symbolic link.
    MakeSymlink {
        /// What the link contains.
        target: &'s str,
        /// The link.
        path: &'s str,
    },
    /// Removes a file or folder.
    Remove {
        /// The file or folder.
        path: &'s str,
        /// A folder goes with all that is in it.
        recursive: bool,
        /// Nothing there is no error.
        force: bool,
    },
    /// Moves a file or folder, over one that is there.
    Rename {
        /// What is moved.
        from: &'s str,
        /// Its new path.
        to: &'s str,
    },
    /// Removes everything in a folder, and not the folder.
    Empty {
        /// The folder, absolute.
        path: &'static str,
    },
}

/// A program to run, by one of several names: arguments, never a line for a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The first words, in the order in which they are tried: the next when the program does not exist.
    pub programs: Vec<Vec<&'static str>>,
    /// What follows.
    pub arguments: Vec<String>,
    /// Variables, where the build has not set them itself.
    pub envs: Vec<(&'static str, &'static str)>,
}

impl Command {
    /// A program by its names, with arguments.
    pub(super) fn new(programs: &[&[&'static str]], arguments: impl IntoIterator<Item = String>) -> Command {
        let programs = programs.iter().map(|words| words.to_vec()).collect();
        Command { programs, arguments: arguments.into_iter().collect(), envs: Vec::new() }
    }

    /// The same with a variable.
    pub(super) fn env(mut self, name: &'static str, value: &'static str) -> Command {
        self.envs.push((name, value));
        self
    }

    /// As a task of the unit's user.
    pub(super) fn task<'s>(self) -> Task<'s> {
        Task::Run { command: self, user: None }
    }

    /// Adds the variables.
    pub fn add_envs(&self, envs: &mut BTreeMap<String, String>) {
        for (name, value) in &self.envs {
            envs.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
    }
}

/// Words as arguments.
pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
