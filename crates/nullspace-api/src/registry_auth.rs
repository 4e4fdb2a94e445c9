//! Credentials that a request brings along. They live as long as its build and are never stored.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::Secret;

/// Credentials for one image registry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", expecting = "an object with a `kind`")]
pub enum TemplateBaseImageAuth {
    /// User name and password (or token).
    #[serde(rename = "basic")]
    Basic(TemplateBaseImageAuthBasic),
    /// Amazon Elastic Container Registry.
    #[serde(rename = "aws_ecr")]
    AwsEcr(TemplateBaseImageAuthAwsEcr),
    /// Google Artifact Registry.
    #[serde(rename = "gcp_artifact_registry")]
    GcpArtifactRegistry(TemplateBaseImageAuthGcpArtifactRegistry),
}

impl TemplateBaseImageAuth {
    /// Its kind on the wire; the only part of it that may be stored.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Basic(_) => "basic",
            Self::AwsEcr(_) => "aws_ecr",
            Self::GcpArtifactRegistry(_) => "gcp_artifact_registry",
        }
    }

    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Basic(basic) => basic.username.len() + basic.password.expose().len(),
            Self::AwsEcr(aws) => {
                let token = aws.session_token.as_ref().map_or(0, |token| token.expose().len());
                aws.access_key_id.len() + aws.secret_access_key.expose().len() + aws.region.len() + token
            }
            Self::GcpArtifactRegistry(gcp) => gcp.service_account_json.0.expose().len(),
        }
    }
}

/// User name and password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateBaseImageAuthBasic {
    /// User name.
    pub username: String,
    /// Password or token.
    #[schema(value_type = String, format = Password, write_only)]
    pub password: Secret,
}

/// An AWS identity that may pull from ECR.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateBaseImageAuthAwsEcr {
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    #[schema(value_type = String, format = Password, write_only)]
    pub secret_access_key: Secret,
    /// Region of the registry.
    pub region: String,
    /// Session token of temporary credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    pub session_token: Option<Secret>,
}

/// A Google service account that may pull from Artifact Registry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateBaseImageAuthGcpArtifactRegistry {
    /// The service account's key file, as an object or as its text.
    #[schema(schema_with = service_account_json)]
    pub service_account_json: ServiceAccountJson,
}

/// A service account's key file: the JSON text, whichever of the two forms the request had.
#[derive(Clone)]
pub struct ServiceAccountJson(pub Secret);

impl fmt::Debug for ServiceAccountJson {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for ServiceAccountJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServiceAccountJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            object @ serde_json::Value::Object(_) => object.to_string(),
            // The value itself stays out of the message: it may be a part of a key.
            _ => return Err(de::Error::custom("service_account_json must be an object or a string")),
        };
        Ok(Self(text.into()))
    }
}

fn service_account_json() -> utoipa::openapi::schema::Schema {
    use utoipa::openapi::schema::{Object, OneOf, Type};
    OneOf::builder()
        .item(Object::builder().schema_type(Type::String))
        .item(Object::builder().schema_type(Type::Object))
        .description(Some("The service account's key file, as an object or as its text."))
        .build()
        .into()
}

/// Credentials for one registry of a Dockerfile build.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateRegistryAuth {
    /// Registry host, with its port if it has one.
    pub registry: String,
    /// Credentials for the registry.
    pub auth: TemplateBaseImageAuth,
}

/// A secret for `RUN --mount=type=secret` of a Dockerfile build.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildSecret {
    /// Its id in the Dockerfile: letters, digits, `.`, `_` and `-`.
    pub id: String,
    /// Its value.
    #[schema(value_type = String, format = Password, write_only)]
    pub value: Secret,
    /// Origin at the client; without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<TemplateBuildSecretSource>,
}

/// Origin of a build secret at the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildSecretSource {
    /// An environment variable.
    Env,
    /// A file.
    File,
    /// Given directly.
    Value,
}
