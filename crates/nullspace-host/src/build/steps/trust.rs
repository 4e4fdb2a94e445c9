//! Certificates of the operator's own authorities in a build machine while its steps run.
//!
//! ```text
//!   the image's bundle + extra_ca_file ──> /dev/nullspace/ca.crt      in the guest's memory, never on its disk
//!   SSL_CERT_FILE, PIP_CERT, …         ──> name it, where the build has not set them itself
//! ```
//! They are removed before the start command runs: neither layers nor snapshots contain them.

use std::collections::BTreeMap;

use nullspace_guest::file::{FileEntry, FileOp};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Failure, FailureKind};

/// Paths of the images' bundles: Debian and Alpine, Fedora, others.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// A larger bundle is left out.
const MAX_BUNDLE: u64 = 8 << 20;
/// Folder in devtmpfs, which is memory.
const FOLDER: &str = "/dev/nullspace";
const BUNDLE: &str = "/dev/nullspace/ca.crt";
const APT: &str = "/dev/nullspace/apt.conf";
/// Variables that name a bundle to programs: OpenSSL, curl, Python, pip, git, node, npm's own, cargo.
const VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
];

/// The additional trusted certificates of a build machine.
pub(crate) struct Trust<'a> {
    pem: Option<&'a [u8]>,
    /// The image's bundle when ours was written; the outer `None` means not written yet.
    of: Option<Option<FileEntry>>,
}

impl<'a> Trust<'a> {
    pub(crate) fn new(pem: Option<&'a [u8]>) -> Trust<'a> {
        Trust { pem, of: None }
    }

    /// Writes the bundle, again when a step has changed the image's, and adds the variables that name it.
    pub(crate) async fn prepare(
        &mut self,
        agent: &Agent,
        envs: &mut BTreeMap<String, String>,
    ) -> Result<(), AgentError> {
        let Some(pem) = self.pem else { return Ok(()) };
        let own = own_bundle(agent).await?;
        if self.of.as_ref() != Some(&own) {
            let mut bundle = match &own {
                Some(own) => read(agent, &own.path).await?,
                None => Vec::new(),
            };
            bundle.push(b'\n');
            bundle.extend_from_slice(pem);
            write(agent, BUNDLE, &bundle).await?;
            write(agent, APT, format!("Acquire::https::CAInfo \"{BUNDLE}\";\n").as_bytes()).await?;
            self.of = Some(own);
        }
        for name in VARIABLES {
            envs.entry(name.to_owned()).or_insert_with(|| BUNDLE.to_owned());
        }
        envs.entry("APT_CONFIG".to_owned()).or_insert_with(|| APT.to_owned());
        Ok(())
    }

    /// Removes the bundle and its folder.
    pub(crate) async fn remove(&mut self, agent: &Agent) -> Result<(), AgentError> {
        if self.of.take().is_none() {
            return Ok(());
        }
        agent.file_done(None, "/", FileOp::Remove { path: FOLDER.to_owned() }).await
    }
}

async fn own_bundle(agent: &Agent) -> Result<Option<FileEntry>, AgentError> {
    for path in BUNDLES {
        // Opened, so that a link is seen as what it leads to.
        match agent.read_file(None, "/", path).await {
            Ok(file) if file.entry.size <= MAX_BUNDLE => return Ok(Some(file.entry.clone())),
            Ok(_) | Err(AgentError::Failed(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

async fn read(agent: &Agent, path: &str) -> Result<Vec<u8>, AgentError> {
    let mut file = agent.read_file(None, "/", path).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = file.next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > 2 * MAX_BUNDLE {
            let message = format!("{path} grows while it is read.");
            return Err(AgentError::Failed(Failure { kind: FailureKind::Limit, message }));
        }
    }
    Ok(bytes)
}

async fn write(agent: &Agent, path: &str, bytes: &[u8]) -> Result<(), AgentError> {
    let mut file = agent.write_file(None, "/", path).await?;
    file.write(bytes).await?;
    file.finish().await.map(drop)
}
