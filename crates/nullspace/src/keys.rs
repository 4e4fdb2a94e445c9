//! API keys, for the operator: straight into the store, beside a running service if there is one. Only `create` makes a
//! data folder that is not there, and says so: a misspelt `--data-dir` must not look like a service without keys.

use std::process::ExitCode;

use anyhow::{Context, bail};
use comfy_table::Table;
use jiff::Timestamp;
use nullspace_db::{KeySpec, NamespaceKind, NewKey};

use crate::config::Config;
use crate::database;

pub(crate) async fn create(config: &Config, tenant: &str, label: &str) -> anyhow::Result<ExitCode> {
    if tenant.trim().is_empty() || tenant == "nullspace" {
        bail!("--tenant must not be empty, nor nullspace, which owns the built-in templates");
    }
    if config.database.is_none() && !config.data_dir.exists() {
        eprintln!("There is no data folder {} yet: it is made for this key.", config.data_dir.display());
    }
    let store = database::open(config).await?;
    let now = Timestamp::now();
    let tenant = store.ensure_tenant(tenant, NamespaceKind::User, now).await.context("make the tenant")?;
    let key = NewKey::generate();
    let spec = KeySpec { label: Some(label.to_owned()), ..KeySpec::default() };
    store.create_key(tenant.id, &key, spec, None, now).await.context("store the key's hash")?;
    store.close().await;
    eprintln!("Key of tenant {} (namespace {}); it is not shown again:", tenant.name, tenant.namespace.slug);
    println!("{}", key.expose());
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(config: &Config) -> anyhow::Result<ExitCode> {
    let store = database::open_existing(config).await?;
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(["ID", "TENANT", "KEY", "LABEL", "SCOPE", "CREATED", "STATE"]);
    let now = Timestamp::now();
    for tenant in store.list_tenants().await.context("list tenants")? {
        for key in store.list_keys(tenant.id).await.context("list keys")? {
            let state = match key.revoked_at {
                Some(_) => "revoked",
                None if key.is_active(now) => "active",
                None => "expired",
            };
            let (id, shown, created) = (key.id.to_string(), format!("{}…", key.shown), key.created_at.to_string());
            table.add_row([&id, &tenant.name, &shown, &key.label, key.scope.as_str(), &created, state]);
        }
    }
    store.close().await;
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn revoke(config: &Config, id: &str) -> anyhow::Result<ExitCode> {
    let id = id.parse().with_context(|| format!("'{id}' is not a key's id; `nullspace keys list` shows them"))?;
    let store = database::open_existing(config).await?;
    store.revoke_key(None, id, Timestamp::now()).await.context("revoke the key")?;
    store.close().await;
    eprintln!("Key {id} opens nothing from now on.");
    Ok(ExitCode::SUCCESS)
}
