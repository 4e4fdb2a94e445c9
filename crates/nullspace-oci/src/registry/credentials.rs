//! Credentials for a registry.

use secrecy::SecretString;

/// Credentials for one registry. `Debug` shows no secret.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// None: public images.
    #[default]
    Anonymous,
    /// User and password, or user and access token.
    Basic {
        /// The user.
        username: String,
        /// The password or token.
        password: SecretString,
    },
    /// An AWS identity. It is exchanged for a password that ECR takes for some hours.
    AwsEcr {
        /// Access key id.
        access_key_id: String,
        /// Secret access key. Signs one request and is never sent.
        secret_access_key: SecretString,
        /// Region of the registry, `eu-central-1`.
        region: String,
        /// Session token of temporary credentials.
        session_token: Option<SecretString>,
    },
    /// A Google service account. It is exchanged for an access token that Artifact Registry takes for an hour.
    GcpServiceAccount {
        /// The service account's key file. The key signs one request and is never sent.
        key_file: SecretString,
    },
}
