//! The data folder's `seal.key`, and whether it decrypts what the database has encrypted.
//!
//! ```text
//!   no file, no secrets                a first start: the file is made
//!   no file, secrets                   the service does not start: the file comes back, or `nullspace store repair` gives them up
//!   file without some of their keys    the service starts and says what does not decrypt: a key was removed too early
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use nullspace_control::SealKey;
use nullspace_data::{ArtifactStore, KeyFile};
use nullspace_db::{Collection, SealedRows};

/// Secrets of the database that no key of the data folder decrypts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sealing {
    /// Path of the file that is missing; `None` when there is one.
    missing: Option<String>,
    /// By the number of their key.
    lost: BTreeMap<u8, SealedRows>,
}

impl Sealing {
    /// The sentence on a missing file with secrets; `None` when nothing needs it.
    pub(crate) fn fault(&self) -> Option<String> {
        let file = self.missing.as_ref().filter(|_| !self.lost.is_empty())?;
        Some(format!("{file} is missing, and the database has secrets that only it decrypts: {}", self.cost()))
    }

    /// What a new key costs.
    pub(crate) fn cost(&self) -> String {
        let sum = |rows: fn(&SealedRows) -> u64| self.lost.values().map(rows).sum::<u64>();
        format!(
            "variables or port tokens of {} sandboxes, variables of {} snapshots, and signing secrets of {} webhooks",
            sum(|rows| rows.sandboxes),
            sum(|rows| rows.snapshots),
            sum(|rows| rows.webhooks)
        )
    }
}

/// Looks at the file, and at the secrets of the database that need it. Changes nothing.
pub(crate) async fn look<D: Collection + ?Sized>(files: &ArtifactStore, database: &D) -> anyhow::Result<Sealing> {
    let mut lost = database.sealed().await.context("list the encrypted secrets")?;
    let missing = match files.key_file(KeyFile::Seal).context("read seal.key")? {
        Some(text) => {
            let key = parse(&text)?;
            lost.retain(|id, _| !key.has(*id));
            None
        }
        None => Some(files.root().join(KeyFile::Seal.name()).display().to_string()),
    };
    Ok(Sealing { missing, lost })
}

/// The keys, made in the data folder if there are none. Call it only when a [`look`] found no fault.
pub(crate) fn key(files: &ArtifactStore, found: &Sealing) -> anyhow::Result<SealKey> {
    if let Some(text) = files.key_file(KeyFile::Seal).context("read seal.key")? {
        if !found.lost.is_empty() {
            let keys: Vec<&u8> = found.lost.keys().collect();
            tracing::error!(
                ?keys,
                secrets = found.cost(),
                "seal.key has not all keys that secrets of the database are encrypted with: what needs them fails until \
                 their lines are back"
            );
        }
        return parse(&text);
    }
    make(files, &BTreeSet::new())
}

/// Gives up the secrets of a missing file, by the operator's will: a new key takes its place, under another number.
pub(crate) fn give_up(files: &ArtifactStore, found: &Sealing) -> anyhow::Result<()> {
    if found.fault().is_some() {
        make(files, &found.lost.keys().copied().collect())?;
    }
    Ok(())
}

fn make(files: &ArtifactStore, taken: &BTreeSet<u8>) -> anyhow::Result<SealKey> {
    let text = SealKey::generate_beside(taken).context("make a seal key")?;
    files.put_key_file(KeyFile::Seal, &text).context("store seal.key")?;
    tracing::info!(
        "made seal.key in the data folder: secrets in the database are encrypted with it; keep a copy of it"
    );
    parse(&text)
}

fn parse(text: &str) -> anyhow::Result<SealKey> {
    SealKey::parse(text).context("seal.key of the data folder")
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn found(missing: bool, keys: &[u8]) -> Sealing {
        let rows = SealedRows { sandboxes: 2, snapshots: 0, webhooks: 1 };
        Sealing {
            missing: missing.then(|| "/data/seal.key".to_owned()),
            lost: keys.iter().map(|key| (*key, rows)).collect(),
        }
    }

    #[test]
    fn only_a_missing_file_with_secrets_is_a_fault() {
        for none in [found(false, &[]), found(true, &[]), found(false, &[1])] {
            assert_eq!(none.fault(), None, "{none:?}");
        }
        let said = found(true, &[1, 2]).fault().unwrap();
        assert!(said.contains("/data/seal.key is missing"), "{said}");
        assert!(said.contains("tokens of 4 sandboxes") && said.contains("secrets of 2 webhooks"), "{said}");
    }

    #[test]
    fn a_file_is_never_replaced_and_given_up_under_another_number() {
        let dir = TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let taken: Vec<u8> = (1..=u8::MAX).collect();
        give_up(&files, &found(false, &taken)).unwrap();
        assert_eq!(files.key_file(KeyFile::Seal).unwrap(), None, "nothing is missing");
        give_up(&files, &found(true, &taken)).unwrap();
        let text = files.key_file(KeyFile::Seal).unwrap().unwrap();
        assert!(text.starts_with("0 "), "the only number that is left");
        assert!(key(&files, &found(false, &taken)).unwrap().has(0));
        assert_eq!(files.key_file(KeyFile::Seal).unwrap(), Some(text));
    }
}
