//! What the owner of a warm pool asks for, its rules, and the versions of its template.

use std::collections::BTreeMap;

use nullspace_api::{
    CreateTemplateWarmPoolRequest, JsonObject, TemplateWarmPoolResources, TemplateWarmPoolVersionPolicy,
    UpdateTemplateWarmPoolRequest, WarmPoolCheckoutMode,
};
use nullspace_definition::sandbox::check_metadata;
use nullspace_host_interface::invalid;
use nullspace_types::{ArtifactId, BuildId, Selector, Tag, TemplateRef};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest name and label, in characters, and most labels.
const NAME: usize = 128;
const LABELS: usize = 32;
/// Most machines of one pool.
pub(super) const MOST: u32 = 1000;
/// Limits of times, seconds.
const IDLE: std::ops::RangeInclusive<u32> = 1..=86_400;
const STALE: std::ops::RangeInclusive<u32> = 10..=604_800;
const DEFAULT_IDLE: u32 = 300;
const DEFAULT_STALE: u32 = 3600;

/// What a pool's owner asked for, as its row has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) name: String,
    /// Namespace of the caller that made it: references without one are in it.
    pub(super) namespace: String,
    pub(super) template_ref: String,
    pub(super) min_ready: u32,
    pub(super) max_ready: u32,
    /// The template's, when the pool was made.
    pub(super) resources: TemplateWarmPoolResources,
    pub(super) checkout_policy: WarmPoolCheckoutMode,
    pub(super) version_policy: TemplateWarmPoolVersionPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) track_tag: Option<String>,
    pub(super) idle_timeout_seconds: u32,
    pub(super) stale_after_seconds: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_pool_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cell_id: Option<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) metadata: JsonObject,
}

/// The template's version now, and the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    /// How often it has changed, from 1 on.
    pub(super) generation: u32,
    pub(super) now: Identity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Identity>,
}

/// A build of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The template as everybody may name it.
    pub(super) template: String,
    pub(super) build: BuildId,
    pub(super) artifact: ArtifactId,
}

impl Version {
    pub(super) fn first(now: Identity) -> Version {
        Version { generation: 1, now, before: None }
    }

    /// The version after a change to another build. `None`: it is the same.
    pub(super) fn after(&self, now: Identity) -> Option<Version> {
        (now.artifact != self.now.artifact).then(|| Version {
            generation: self.generation.saturating_add(1),
            now,
            before: Some(self.now.clone()),
        })
    }
}

impl Spec {
    /// The specification of a new pool.
    pub(super) fn new(namespace: &str, request: CreateTemplateWarmPoolRequest) -> Result<Spec> {
        let tracks = request.track_tag.is_some();
        let by_tag = |policy: Option<_>| {
            policy.unwrap_or(if tracks {
                TemplateWarmPoolVersionPolicy::TrackTag
            } else {
                TemplateWarmPoolVersionPolicy::PinnedBuild
            })
        };
        Spec {
            name: request.name,
            namespace: namespace.to_owned(),
            template_ref: request.template.unwrap_or(request.template_ref),
            min_ready: request.min_ready,
            max_ready: request.max_ready,
            resources: request.resources,
            checkout_policy: request.checkout_policy.unwrap_or(WarmPoolCheckoutMode::Prefer),
            version_policy: by_tag(request.version_policy),
            track_tag: request.track_tag,
            idle_timeout_seconds: request.idle_timeout_seconds.unwrap_or(DEFAULT_IDLE),
            stale_after_seconds: request.stale_after_seconds.unwrap_or(DEFAULT_STALE),
            host_pool_id: request.host_pool_id,
            cell_id: request.cell_id,
            labels: request.labels.unwrap_or_default(),
            metadata: request.metadata.unwrap_or_default(),
        }
        .checked()
    }

    /// The specification after a change. What is left out stays.
    pub(super) fn changed(&self, request: UpdateTemplateWarmPoolRequest) -> Result<Spec> {
        let before = self.clone();
        Spec {
            name: request.name.unwrap_or(before.name),
            namespace: before.namespace,
            template_ref: request.template.or(request.template_ref).unwrap_or(before.template_ref),
            min_ready: request.min_ready.unwrap_or(before.min_ready),
            max_ready: request.max_ready.unwrap_or(before.max_ready),
            resources: request.resources.unwrap_or(before.resources),
            checkout_policy: request.checkout_policy.unwrap_or(before.checkout_policy),
            version_policy: request.version_policy.unwrap_or(before.version_policy),
            track_tag: request.track_tag.or(before.track_tag),
            idle_timeout_seconds: request.idle_timeout_seconds.unwrap_or(before.idle_timeout_seconds),
            stale_after_seconds: request.stale_after_seconds.unwrap_or(before.stale_after_seconds),
            host_pool_id: request.host_pool_id.or(before.host_pool_id),
            cell_id: request.cell_id.or(before.cell_id),
            labels: request.labels.unwrap_or(before.labels),
            metadata: request.metadata.unwrap_or(before.metadata),
        }
        .checked()
    }

    fn checked(self) -> Result<Spec> {
        let wrong = |what: String| Err(Error::invalid(what));
        let is_short =
            |text: &str| !text.is_empty() && text.chars().count() <= NAME && !text.contains(char::is_control);
        if !is_short(&self.name) {
            return wrong(format!("name must have 1 to {NAME} characters, and no control characters"));
        }
        if self.max_ready > MOST || self.min_ready > self.max_ready {
            return wrong(format!("min_ready must be at most max_ready, and max_ready at most {MOST}"));
        }
        for (field, value, range) in [
            ("idle_timeout_seconds", self.idle_timeout_seconds, IDLE),
            ("stale_after_seconds", self.stale_after_seconds, STALE),
        ] {
            if !range.contains(&value) {
                return wrong(format!("{field} must be {} to {}", range.start(), range.end()));
            }
        }
        let words = self.labels.iter().flat_map(|(key, value)| [key, value]);
        if self.labels.len() > LABELS || !words.into_iter().all(|word| is_short(word)) {
            return wrong(format!("labels must be at most {LABELS}, with keys and values of 1 to {NAME} characters"));
        }
        for (field, id) in [("host_pool_id", &self.host_pool_id), ("cell_id", &self.cell_id)] {
            if id.as_ref().is_some_and(|id| !is_short(id)) {
                return wrong(format!("{field} must have 1 to {NAME} characters"));
            }
        }
        check_metadata("metadata", Some(&self.metadata)).map_err(invalid)?;
        self.reference()?;
        Ok(self)
    }

    /// The reference that its template is found by, with the tag that it follows.
    pub(super) fn reference(&self) -> Result<String> {
        let Some(tag) = self.track_tag.as_ref().filter(|_| self.tracks()) else {
            return match self.template_ref.parse::<TemplateRef>() {
                Ok(TemplateRef::Artifact(_) | TemplateRef::Named { selector: Some(Selector::Build(_)), .. })
                    if self.tracks() =>
                {
                    Err(Error::invalid("track_tag follows a tag, and template_ref names one build"))
                }
                Ok(_) => Ok(self.template_ref.clone()),
                Err(error) => Err(Error::invalid(format!("template_ref: {error}"))),
            };
        };
        let tag: Tag = tag.parse().map_err(|error| Error::invalid(format!("track_tag: {error}")))?;
        match self.template_ref.parse::<TemplateRef>() {
            Ok(TemplateRef::Named { namespace, name, .. }) => Ok(match namespace {
                Some(namespace) => format!("{namespace}/{name}:{tag}"),
                None => format!("{name}:{tag}"),
            }),
            Ok(_) => Err(Error::invalid("track_tag needs a template_ref with a name")),
            Err(error) => Err(Error::invalid(format!("template_ref: {error}"))),
        }
    }

    /// True when it follows a tag.
    pub(super) fn tracks(&self) -> bool {
        self.version_policy == TemplateWarmPoolVersionPolicy::TrackTag
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(change: serde_json::Value) -> Result<Spec> {
        let mut request = json!({"name": "web", "template_ref": "acme/web:v1", "min_ready": 1, "max_ready": 2,
            "resources": {"vcpus": 1, "memory_mb": 512}});
        request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Spec::new("acme", serde_json::from_value(request).unwrap())
    }

    #[test]
    fn defaults_and_what_is_left_out_of_a_change() {
        let spec = asked(json!({})).unwrap();
        assert_eq!((spec.idle_timeout_seconds, spec.stale_after_seconds), (300, 3600));
        assert_eq!(spec.version_policy, TemplateWarmPoolVersionPolicy::PinnedBuild);
        assert_eq!(spec.checkout_policy, WarmPoolCheckoutMode::Prefer);
        assert_eq!(spec.changed(UpdateTemplateWarmPoolRequest::default()).unwrap(), spec);
        let stored: Spec = serde_json::from_value(json!(spec)).unwrap();
        assert_eq!(stored, spec);
        let changed = UpdateTemplateWarmPoolRequest { min_ready: Some(2), ..Default::default() };
        assert_eq!(spec.changed(changed).unwrap().min_ready, 2);
        let changed = UpdateTemplateWarmPoolRequest { min_ready: Some(3), ..Default::default() };
        assert!(spec.changed(changed).is_err(), "more than max_ready");
    }

    #[test]
    fn a_tag_that_is_followed_takes_the_place_of_the_references_own() {
        assert_eq!(asked(json!({})).unwrap().reference().unwrap(), "acme/web:v1");
        let followed = asked(json!({"track_tag": "stable"})).unwrap();
        assert_eq!((followed.tracks(), followed.reference().unwrap().as_str()), (true, "acme/web:stable"));
        let own = asked(json!({"version_policy": "track_tag", "template_ref": "web"})).unwrap();
        assert_eq!((own.tracks(), own.reference().unwrap().as_str()), (true, "web"));
        let pinned = asked(json!({"version_policy": "pinned_build", "track_tag": "stable"})).unwrap();
        assert_eq!(pinned.reference().unwrap(), "acme/web:v1");
        let artifact = ArtifactId::new().to_string();
        for wrong in [
            json!({"track_tag": "stable", "template_ref": artifact}),
            json!({"version_policy": "track_tag", "template_ref": artifact}),
            json!({"track_tag": "a b"}),
            json!({"template_ref": "a b"}),
        ] {
            assert!(asked(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_beyond_their_range_are_named() {
        let many: BTreeMap<String, String> = (0..33).map(|n| (n.to_string(), "x".to_owned())).collect();
        for (wrong, named) in [
            (json!({"name": ""}), "name"),
            (json!({"name": "a\nb"}), "name"),
            (json!({"name": "x".repeat(129)}), "name"),
            (json!({"min_ready": 3}), "min_ready"),
            (json!({"max_ready": 1001}), "max_ready"),
            (json!({"idle_timeout_seconds": 0}), "idle_timeout_seconds"),
            (json!({"stale_after_seconds": 9}), "stale_after_seconds"),
            (json!({"labels": {"": "x"}}), "labels"),
            (json!({"labels": many}), "labels"),
            (json!({"host_pool_id": ""}), "host_pool_id"),
            (json!({"metadata": {"a": "x".repeat(70_000)}}), "metadata"),
        ] {
            let error = asked(wrong.clone()).unwrap_err();
            assert!(error.message.contains(named), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_version_changes_with_the_artifact() {
        let identity = || Identity { template: "acme/web".into(), build: BuildId::new(), artifact: ArtifactId::new() };
        let first = Version::first(identity());
        assert_eq!(first.after(first.now.clone()), None);
        let next = first.after(identity()).unwrap();
        assert_eq!((next.generation, next.before.as_ref()), (2, Some(&first.now)));
    }
}
