//! How the client commands find their service, and how they show numbers.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nullspace_client::Client;
use secrecy::SecretString;

/// Which service to talk to, as whom. The published client reads the same variables.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// Base URL of the service.
    #[arg(long, env = "NULLSPACE_API_URL", default_value = "http://127.0.0.1:3000")]
    api_url: String,
}

impl Remote {
    /// A client; the key comes from `NULLSPACE_API_KEY` only, so that it is in no process list.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let key = std::env::var("NULLSPACE_API_KEY")
            .context("NULLSPACE_API_KEY is not set; `nullspace keys create --tenant NAME` makes a key")?;
        Client::new(&self.api_url, SecretString::from(key)).with_context(|| format!("use {}", self.api_url))
    }
}

/// `850 ms`, `12.3 s`.
pub(crate) fn shown(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// `NAME=VALUE` of a command line.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
