//! `nullspace snapshot …`: snapshots of sandboxes of a running service.

use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::Table;
use nullspace_api::PromoteSnapshotRequest;

use crate::remote::Remote;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List snapshots, newest first.
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a template of a snapshot: its sandboxes start with the snapshot's memory, processes and disk.
    Promote {
        /// Id of the snapshot, `snap_…`.
        id: String,
        /// Name of the template.
        name: String,
        /// Tag of the template that points to it; `default` when it is left out.
        #[arg(long)]
        tag: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a snapshot. Sandboxes and templates that were made from it stay.
    #[command(alias = "rm")]
    Delete {
        /// Id of the snapshot, `snap_…`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { remote } => {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::NOTHING).set_header(["ID", "SANDBOX", "MIB", "TAKEN"]);
            for snapshot in remote.client()?.list_snapshots().await? {
                let mib = snapshot.size_bytes.div_ceil(1 << 20);
                let taken = snapshot.created_at.to_string();
                table.add_row([snapshot.id, snapshot.sandbox_id, mib.to_string(), taken]);
            }
            println!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Promote { id, name, tag, remote } => {
            let template = remote.client()?.promote_snapshot(&id, &PromoteSnapshotRequest { name, tag }).await?;
            println!("{} ({})", template.canonical_ref, template.id);
            eprintln!("Its sandboxes have what was in the memory and on the disk of the snapshot, secrets included.");
            Ok(ExitCode::SUCCESS)
        }
        Command::Delete { id, remote } => {
            remote.client()?.delete_snapshot(&id).await?;
            println!("deleted {id}");
            Ok(ExitCode::SUCCESS)
        }
    }
}
