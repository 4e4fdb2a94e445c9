//! Declarative build steps. Values are data: none is ever interpreted by a shell, but for `run`'s command.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// One step of a declarative build, told apart by `action`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", expecting = "an object with an `action`")]
pub enum TemplateStep {
    /// Run a shell command.
    Run(TemplateRunStep),
    /// Copy files of the build context.
    Copy(TemplateCopyStep),
    /// Several copies as one step.
    CopyItems(TemplateCopyItemsStep),
    /// Install Debian packages.
    AptInstall(TemplateAptInstallStep),
    /// Install Python packages.
    PipInstall(TemplatePipInstallStep),
    /// Install Node packages with npm.
    NpmInstall(TemplateNpmInstallStep),
    /// Install Node packages with bun.
    BunInstall(TemplateBunInstallStep),
    /// Clone a git repository.
    GitClone(TemplateGitCloneStep),
    /// Set the working directory of later steps.
    Workdir(TemplateWorkdirStep),
    /// Set the user of later steps.
    User(TemplateUserStep),
    /// Make a directory and its parents.
    MakeDir(TemplateMakeDirStep),
    /// Make a symbolic link.
    MakeSymlink(TemplateMakeSymlinkStep),
    /// Remove a file or directory.
    Remove(TemplateRemoveStep),
    /// Rename a file or directory.
    Rename(TemplateRenameStep),
    /// A cache boundary: later steps bypass the cache.
    SkipCache(TemplateSkipCacheStep),
}

/// Permission bits: an octal string (`"0755"`) or a number (`493`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected octal digits such as \"0755\", or a number")]
pub enum TemplateFileMode {
    /// The bits as a number.
    Number(u32),
    /// The bits in octal digits.
    Octal(String),
}

/// Run a shell command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateRunStep {
    /// Run by `sh -c`.
    pub command: String,
    /// Run as this user instead of the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Copy files of the build context; meaning as Docker's COPY.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateCopyStep {
    /// Paths in the build context. Older clients send `src`, one path or several.
    #[serde(alias = "src", deserialize_with = "one_or_several")]
    pub sources: Vec<String>,
    /// Path in the image; a trailing slash means a directory.
    pub dst: String,
    /// Owner, as Docker's `--chown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Permissions, as Docker's `--chmod`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub mode: Option<TemplateFileMode>,
    /// Upload the files again even if they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_upload: Option<bool>,
}

/// Several copies as one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateCopyItemsStep {
    /// The copies, in order.
    pub items: Vec<TemplateCopyItem>,
}

/// One copy of a `copy_items` step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateCopyItem {
    /// Paths in the build context. Older clients send `src`, one path or several.
    #[serde(alias = "src", deserialize_with = "one_or_several")]
    pub sources: Vec<String>,
    /// Path in the image; a trailing slash means a directory.
    pub dst: String,
    /// Owner, as Docker's `--chown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Permissions, as Docker's `--chmod`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub mode: Option<TemplateFileMode>,
    /// Upload the files again even if they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_upload: Option<bool>,
}

/// A list of texts, or one by itself.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum Given {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::One(path) => vec![path],
        Given::Several(paths) => paths,
    })
}

/// `apt-get update`, `install -y`, package lists dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateAptInstallStep {
    /// Package names.
    pub packages: Vec<String>,
}

/// `pip install`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplatePipInstallStep {
    /// Requirement specifiers.
    pub packages: Vec<String>,
    /// False: only for the user (`--user`). Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g: Option<bool>,
}

/// `npm install`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateNpmInstallStep {
    /// Package specifiers.
    pub packages: Vec<String>,
    /// True: globally (`-g`). Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g: Option<bool>,
}

/// `bun add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBunInstallStep {
    /// Package specifiers.
    pub packages: Vec<String>,
    /// True: globally (`-g`). Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g: Option<bool>,
}

/// `git clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateGitCloneStep {
    /// Repository.
    pub url: String,
    /// Destination. Default `/workspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Branch or tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Commits of history to fetch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
}

/// Set the working directory of later steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateWorkdirStep {
    /// The directory; made when it does not exist.
    pub path: String,
}

/// Set the user of later steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateUserStep {
    /// `user`, `uid`, `user:group`, `uid:gid`, as Docker's USER.
    pub user: String,
}

/// Make a directory and its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateMakeDirStep {
    /// The directory.
    pub path: String,
    /// Its permissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub mode: Option<TemplateFileMode>,
}

/// Make a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateMakeSymlinkStep {
    /// Target of the link.
    pub target: String,
    /// Where it is.
    pub path: String,
}

/// Remove a file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateRemoveStep {
    /// Path to remove.
    pub path: String,
    /// With everything in it. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recursive: Option<bool>,
    /// No error when it does not exist. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Rename a file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateRenameStep {
    /// From.
    pub src: String,
    /// To.
    pub dst: String,
    /// Replace an existing file. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// A cache boundary: later steps bypass the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateSkipCacheStep {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_have_an_older_name_and_may_be_one_path() {
        let copy = |value: serde_json::Value| serde_json::from_value::<TemplateStep>(value);
        let expected = copy(json!({"action": "copy", "sources": ["a"], "dst": "b"})).unwrap();
        for given in [json!({"src": "a"}), json!({"src": ["a"]}), json!({"sources": "a"})] {
            let mut step = json!({"action": "copy", "dst": "b"});
            let mut items = json!({"action": "copy_items", "items": [{"dst": "b"}]});
            for (name, value) in given.as_object().unwrap() {
                step[name] = value.clone();
                items["items"][0][name] = value.clone();
            }
            assert_eq!(copy(step).unwrap(), expected, "{given}");
            let TemplateStep::CopyItems(items) = copy(items).unwrap() else { panic!() };
            assert_eq!(items.items[0].sources, ["a"], "{given}");
        }
        for wrong in [json!({}), json!({"src": 1}), json!({"src": "a", "sources": ["b"]}), json!({"sources": [1]})] {
            let mut step = json!({"action": "copy", "dst": "b"});
            step.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            copy(step).unwrap_err();
        }
    }
}
