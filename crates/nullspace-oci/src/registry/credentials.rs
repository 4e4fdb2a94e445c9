//! Who the caller is to a registry.

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
}
