//! The effect of a step as data, which the host's executor carries out in a machine.

use std::collections::BTreeMap;

use super::copies::Copy;

/// The effect of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<'s> {
    /// Work in the machine, in this order. Such a step is a unit, which runs and is cached as one.
    Tasks(Vec<Task<'s>>),
    /// The user of the following steps.
    User(&'s str),
    /// The working directory of the following steps.
    Workdir(&'s str),
    /// The following steps bypass the cache.
    CacheBoundary,
}

/// One piece of work in a machine. Relative paths start at the unit's working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task<'s> {
    /// Runs a program to its end.
    Run {
        /// The program.
        command: Command,
        /// The user that runs it, instead of the unit's user.
        user: Option<&'s str>,
    },
    /// Copies files of the build context.
    Copy(Copy<'s>),
    /// Makes a folder, and missing folders above it.
    MakeDir {
        /// The folder.
        path: &'s str,
        /// Its permission bits.
        mode: Option<u32>,
    },
    /// Makes a symbolic link.
    MakeSymlink {
        /// The target of the link.
        target: &'s str,
        /// The link.
        path: &'s str,
    },
    /// Removes a file or folder.
    Remove {
        /// The file or folder.
        path: &'s str,
        /// True: a folder is removed with its contents.
        recursive: bool,
        /// True: a missing path is no error.
        force: bool,
    },
    /// Moves a file or folder. Replaces an existing one.
    Rename {
        /// The old path.
        from: &'s str,
        /// Its new path.
        to: &'s str,
    },
    /// Removes everything in a folder, but not the folder.
    Empty {
        /// The folder, absolute.
        path: &'static str,
    },
}

/// A program to run, by one of several names: arguments, never a line for a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The first words, in the order in which they are tried. The next one is tried when the program does not exist.
    pub programs: Vec<Vec<&'static str>>,
    /// The other arguments.
    pub arguments: Vec<String>,
    /// Variables, unless the build sets them itself.
    pub envs: Vec<(&'static str, &'static str)>,
}

impl Command {
    /// A program by its names, with arguments.
    pub(super) fn new(programs: &[&[&'static str]], arguments: impl IntoIterator<Item = String>) -> Command {
        let programs = programs.iter().map(|words| words.to_vec()).collect();
        Command { programs, arguments: arguments.into_iter().collect(), envs: Vec::new() }
    }

    /// Adds a variable.
    pub(super) fn env(mut self, name: &'static str, value: &'static str) -> Command {
        self.envs.push((name, value));
        self
    }

    /// Makes it a task of the unit's user.
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
