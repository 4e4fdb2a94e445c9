//! What a client asks to be built.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Envs, TemplateBaseImageAuth, TemplateBuildBackend, TemplateBuildSecret, TemplateReadinessProbe,
    TemplateRegistryAuth, TemplateStep,
};

/// A template's definition. Exactly one source: `dockerfile`, or `base_image` (with or without `steps`), or `steps`
/// alone on the default base.
///
/// It cannot be serialised while it holds credentials; [`CreateTemplateRequest::take_secrets`] first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(description = "A template's definition. Exactly one source: `dockerfile`, or `base_image` (with or without \
    `steps`), or `steps` alone on the default base.")]
pub struct CreateTemplateRequest {
    /// Template name; falls back to `alias`, then is generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Dockerfile text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// An OCI image reference (`ubuntu:22.04`) or a template reference (`nullspace/base:latest`, `ns/x:tag`, `tmpl_…`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
    /// Another spelling of `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Tags to move to the artifact; `["default"]` when omitted, never empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Declarative steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub steps: Option<Vec<TemplateStep>>,
    /// Environment while building and for the start command; never after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_envs: Option<Envs>,
    /// Run once, at build, by `sh -c`; its process is alive in every sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// Not of the contract: run by `sh -c` in every sandbox when it is resumed, before anything else, as the start command's
    /// user. If it fails, there is no sandbox. See docs/resume.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_cmd: Option<String>,
    /// Files that steps or a Dockerfile copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_context: Option<TemplateBuildContext>,
    /// Size of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_config: Option<TemplateBuildConfig>,
    /// Builder. Dockerfiles use BuildKit, all other sources are native.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_backend: Option<TemplateBuildBackend>,
    /// Path of the Dockerfile in the build context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_path: Option<String>,
    /// Dockerfile build arguments; they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_args: Option<Envs>,
    /// Dockerfile target stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_target: Option<String>,
    /// Runtime configuration of the template's sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_config: Option<TemplateRuntimeConfig>,
    /// Credentials for the base image's registry; never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image_auth: Option<TemplateBaseImageAuth>,
    /// Credentials for registries that a Dockerfile pulls from; never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Vec<TemplateRegistryAuth>>,
    /// Secrets for a Dockerfile's `RUN --mount=type=secret`; never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_secrets: Option<Vec<TemplateBuildSecret>>,
    /// Take nothing from the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_cache: Option<bool>,
    /// Token of a reserved name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_token: Option<String>,
}

/// The part of a request that must not outlive its build.
#[derive(Debug, Clone, Default)]
pub struct RequestSecrets {
    /// Credentials for the base image's registry.
    pub base_image_auth: Option<TemplateBaseImageAuth>,
    /// Credentials for a Dockerfile's registries.
    pub registry_auth: Vec<TemplateRegistryAuth>,
    /// A Dockerfile's secrets.
    pub build_secrets: Vec<TemplateBuildSecret>,
}

impl RequestSecrets {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.base_image_auth.is_none() && self.registry_auth.is_empty() && self.build_secrets.is_empty()
    }

    /// About how many bytes they take in memory.
    pub fn size(&self) -> usize {
        let logins = self.registry_auth.iter().map(|auth| auth.registry.len() + auth.auth.size());
        let secrets = self.build_secrets.iter().map(|secret| secret.id.len() + secret.value.expose().len());
        self.base_image_auth.iter().map(TemplateBaseImageAuth::size).chain(logins).chain(secrets).sum()
    }
}

impl CreateTemplateRequest {
    /// Move the credentials out; what is left may be stored.
    #[must_use]
    pub fn take_secrets(&mut self) -> RequestSecrets {
        RequestSecrets {
            base_image_auth: self.base_image_auth.take(),
            registry_auth: self.registry_auth.take().unwrap_or_default(),
            build_secrets: self.build_secrets.take().unwrap_or_default(),
        }
    }
}

/// Size of the machine that a template is built in, and that its sandboxes have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildConfig {
    /// Virtual processors; 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB; 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// False: no network while building. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// Size in MiB that the root filesystem is grown to before the snapshot; at least 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
}

/// Runtime configuration of a template's sandboxes. A child template inherits it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateRuntimeConfig {
    /// User of the start command, of execs and of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of the start command and of execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Environment of the build, the start command and every sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_envs: Option<Envs>,
    /// When the start command counts as ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub readiness: Option<TemplateReadinessProbe>,
}

/// The files of a build context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildContext {
    /// In any order; parents need not be listed.
    pub files: Vec<TemplateBuildContextFile>,
}

/// One file or directory of a build context.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildContextFile {
    /// Relative path without `..`.
    pub path: String,
    /// File or directory; there are no symlinks.
    pub entry_type: TemplateContextEntryType,
    /// The file's bytes in base64. Either this or `blob_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
    /// An uploaded blob. Either this or `content_base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<String>,
    /// Permissions in octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl fmt::Debug for TemplateBuildContextFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TemplateBuildContextFile")
            .field("path", &self.path)
            .field("entry_type", &self.entry_type)
            .field("content_base64_len", &self.content_base64.as_ref().map(String::len))
            .field("blob_id", &self.blob_id)
            .field("mode", &self.mode)
            .finish()
    }
}

/// Kind of an entry in a build context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateContextEntryType {
    /// A directory.
    Dir,
    /// A regular file.
    File,
}

/// Build once more what failed or was cancelled. Secrets are not stored, so the same ids must be given again.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct RetryTemplateBuildRequest {
    /// Other tags than the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Credentials for the base image's registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image_auth: Option<TemplateBaseImageAuth>,
    /// Credentials for a Dockerfile's registries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Vec<TemplateRegistryAuth>>,
    /// A Dockerfile's secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_secrets: Option<Vec<TemplateBuildSecret>>,
}

/// Stop a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CancelTemplateBuildRequest {
    /// Reason, for the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Move tags to a build's artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromoteTemplateBuildRequest {
    /// One tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Several tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
}

/// Ask which files of a build context the service does not have yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBlobPreflightRequest {
    /// The files; the answer has one item for each, in this order.
    pub files: Vec<TemplateBlobPreflightFile>,
}

/// One file that would be uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBlobPreflightFile {
    /// Relative path without `..`.
    pub path: String,
    /// File or directory.
    pub entry_type: TemplateContextEntryType,
    /// Permissions in octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Digest of the file's bytes in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Size of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Upload the file even if it is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_upload: Option<bool>,
}

/// Files that must be uploaded, with their blob ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBlobPreflightResponse {
    /// One item for each file of the request, in its order.
    pub files: Vec<TemplateBlobPreflightResult>,
}

/// Upload state of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBlobPreflightResult {
    /// As in the request.
    pub path: String,
    /// As in the request.
    pub entry_type: TemplateContextEntryType,
    /// True when its bytes must be uploaded.
    pub missing: bool,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Name to upload it under and to use in the build request; always there for files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<String>,
}
