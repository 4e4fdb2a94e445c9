//! Checks of settings beyond their types: ranges, and texts that must be addresses, networks or URLs. An impossible value is
//! an error that names the setting and its allowed values. No value is accepted and then ignored.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use anyhow::{Context, bail, ensure};
use ipnet::Ipv4Net;
use nullspace_vmm::net::{Allowed, GATEWAY, pairs, parse_network};

use super::{AccelChoice, Config, VmmChoice};

/// Largest amount of MiB: a pebibyte.
const MAX_MIB: u64 = 1 << 30;
/// Most older programs of a kind: each is set up, and may keep memory of its templates.
const MAX_OLDER: usize = 8;
/// Ranges without public addresses: private (RFC 1918), shared (RFC 6598), for benchmarks (RFC 2544).
const PRIVATE: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15),
];
/// Fewest links of a pool of addresses.
const MIN_LINKS: u32 = 2;

/// Every number with its value, if it is set, and its range.
pub(super) fn numbers(config: &Config) -> Vec<(&'static str, Option<u64>, RangeInclusive<u64>)> {
    let count = |value: usize| Some(value as u64);
    vec![
        // A Docker Engine and a compiler; the engine's programs take half a gigabyte of the disk.
        ("builder_memory_mib", Some(config.builder_memory_mib.into()), 512..=1_048_576),
        ("builder_disk_mib", Some(config.builder_disk_mib), 2048..=MAX_MIB),
        ("builder_idle_secs", Some(config.builder_idle_secs), 0..=31_536_000),
        ("builder_machines", count(config.builder_machines), 1..=1024),
        ("build_concurrency", count(config.build_concurrency), 1..=64),
        ("build_timeout_secs", Some(config.build_timeout_secs), 10..=86_400),
        ("step_timeout_secs", Some(config.step_timeout_secs), 1..=86_400),
        ("builds_per_tenant", Some(config.builds_per_tenant.into()), 1..=1_000_000),
        ("running_builds_per_tenant", Some(config.running_builds_per_tenant.into()), 1..=1_000_000),
        // A hundred years are for ever.
        ("untagged_retention_secs", Some(config.untagged_retention_secs), 0..=3_155_760_000),
        // Callers look at what has just ended, and repeat requests.
        ("sandbox_retention_secs", Some(config.sandbox_retention_secs), 60..=3_155_760_000),
        ("build_retention_secs", Some(config.build_retention_secs), 60..=3_155_760_000),
        ("idempotency_retention_secs", Some(config.idempotency_retention_secs), 60..=3_155_760_000),
        ("build_log_compression_secs", Some(config.build_log_compression_secs), 0..=86_400),
        ("lifecycle_retention_secs", Some(config.lifecycle_retention_secs), 60..=3_155_760_000),
        ("requests_per_second", Some(config.requests_per_second.into()), 1..=1_000_000),
        ("upload_mib_per_tenant", Some(config.upload_mib_per_tenant), 1..=MAX_MIB),
        ("max_connections", Some(config.max_connections as u64), 1..=1_000_000),
        ("connections_per_address", Some(config.connections_per_address as u64), 1..=1_000_000),
        ("connections_per_tenant", Some(config.connections_per_tenant as u64), 1..=1_000_000),
        // One JSON body of the largest size, twice over while its buffer grows.
        ("request_memory_mib", Some(u64::from(config.request_memory_mib)), 64..=1_048_576),
        ("request_memory_mib_per_tenant", Some(u64::from(config.request_memory_mib_per_tenant)), 64..=1_048_576),
        ("rootfs_cache_mib", Some(config.rootfs_cache_mib), 0..=MAX_MIB),
        ("layer_cache_mib", Some(config.layer_cache_mib), 0..=MAX_MIB),
        ("object_cache_mib", Some(config.object_cache_mib), 0..=MAX_MIB),
        ("object_grace_secs", Some(config.object_grace_secs), 0..=2_592_000),
        ("disk_reserve_mib", config.disk_reserve_mib, 0..=MAX_MIB),
        ("lease_secs", Some(config.lease_secs), 1..=3600),
        // Less runs no machine at all.
        ("memory_mib", config.memory_mib, 128..=MAX_MIB),
        ("vcpus", config.vcpus, 1..=65_536),
        // With 0 nobody could run anything.
        ("sandboxes_per_tenant", config.sandboxes_per_tenant, 1..=1_000_000),
        ("vcpus_per_tenant", config.vcpus_per_tenant, 1..=1_000_000),
        ("memory_mib_per_tenant", config.memory_mib_per_tenant, 1..=MAX_MIB),
        ("paused_sandboxes_per_tenant", Some(config.paused_sandboxes_per_tenant.into()), 0..=1_000_000),
        ("snapshots_per_tenant", Some(config.snapshots_per_tenant.into()), 0..=1_000_000),
        ("warm_machines_per_tenant", Some(config.warm_machines_per_tenant.into()), 0..=10_000),
        ("pause_when_full_idle_secs", Some(config.pause_when_full_idle_secs), 1..=31_536_000),
        ("stop_pause_secs", Some(config.stop_pause_secs), 0..=3600),
        ("preview_response_timeout_secs", Some(config.preview_response_timeout_secs), 1..=86_400),
        // nftables and QEMU take larger ones; nobody has a disk or network that reaches these.
        ("disk_mib_per_second", Some(config.disk_mib_per_second.into()), 1..=1_000_000),
        ("disk_operations_per_second", Some(config.disk_operations_per_second.into()), 1..=100_000_000),
        ("network_connections", Some(config.network_connections.into()), 1..=1_000_000),
        ("network_connections_per_second", Some(config.network_connections_per_second.into()), 1..=1_000_000),
        ("network_packets_per_second", Some(config.network_packets_per_second.into()), 1..=100_000_000),
        ("network_mib_per_second", Some(config.network_mib_per_second.into()), 1..=4_000),
    ]
}

/// Returns an error for the first setting with an impossible value.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    for (name, value, range) in numbers(config) {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            bail!("{name} is {value}: it must be {} to {}", range.start(), range.end());
        }
    }
    if config.require_kvm && config.accel == AccelChoice::Tcg && config.vmm != VmmChoice::Firecracker {
        bail!("require_kvm is set and accel is \"tcg\": machines would run in software");
    }
    paths(config)?;
    urls(config)?;
    network(config)?;
    if let Some(name) = &config.preview_domain {
        domain(name)?;
    }
    crate::ports::proxies(config)?;
    crate::ssh::address(config)?;
    crate::objects::check(config)?;
    for registry in &config.plain_http_registries {
        host("plain_http_registries", registry)?;
    }
    if let Some(url) = &config.database {
        use secrecy::ExposeSecret as _;
        // The value is not said: it may have a password.
        nullspace_db::PostgresStore::check_url(url.expose_secret())
            .map_err(|error| anyhow::anyhow!("database: {error}"))?;
    }
    if let Some(token) = &config.metrics_token {
        use secrecy::ExposeSecret as _;
        let token = token.expose_secret();
        let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(visible, "metrics_token must be 1 or more visible ASCII characters, without spaces");
    }
    if config.buildkit.as_ref().is_some_and(Vec::is_empty) {
        bail!("buildkit is an empty list: leave it out for the default, or write [\"off\"] for none");
    }
    Ok(())
}

fn paths(config: &Config) -> anyhow::Result<()> {
    let optional = [
        ("guest_dir", &config.guest_dir),
        ("base_tar", &config.base_tar),
        ("builder_tar", &config.builder_tar),
        ("docker_config", &config.docker_config),
        ("extra_ca_file", &config.extra_ca_file),
        ("buildkit_ca", &config.buildkit_ca),
        ("buildkit_cert", &config.buildkit_cert),
        ("buildkit_key", &config.buildkit_key),
    ];
    let given = [
        ("data_dir", &config.data_dir),
        ("qemu", &config.qemu),
        ("firecracker", &config.firecracker),
        ("jailer", &config.jailer),
    ];
    let optional = optional.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?)));
    let older = [("older_qemu", &config.older_qemu), ("older_firecracker", &config.older_firecracker)];
    for (name, paths) in older {
        ensure!(paths.len() <= MAX_OLDER, "{name} has {} programs: at most {MAX_OLDER} are possible", paths.len());
    }
    let older = older.into_iter().flat_map(|(name, paths)| paths.iter().map(move |path| (name, path)));
    for (name, path) in given.into_iter().chain(optional).chain(older) {
        ensure!(!path.as_os_str().is_empty(), "{name} is empty: it must be a path");
    }
    Ok(())
}

fn urls(config: &Config) -> anyhow::Result<()> {
    for (registry, url) in &config.registry_mirrors {
        host("registry_mirrors", registry)?;
        is_url("registry_mirrors", url)?;
    }
    for (name, url) in [("ecr_endpoint", &config.ecr_endpoint), ("gcp_token_url", &config.gcp_token_url)] {
        url.iter().try_for_each(|url| is_url(name, url))?;
    }
    Ok(())
}

fn is_url(name: &str, text: &str) -> anyhow::Result<()> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let sound = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#']));
    ensure!(sound && !text.contains(char::is_whitespace), "{name}: '{text}' must be a URL, http:// or https://");
    Ok(())
}

/// A registry as image references name it.
fn host(name: &str, text: &str) -> anyhow::Result<()> {
    let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let sound = !text.is_empty() && text.bytes().all(sign);
    ensure!(sound, "{name}: '{text}' must be a registry's host, with :port if it has one, and no scheme or path");
    Ok(())
}

/// A domain, as host names end in it.
fn domain(text: &str) -> anyhow::Result<()> {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    // A port and an id of a sandbox go before it, with a dot: 42 characters.
    let sound = name.len() <= 200 && name.split('.').all(label);
    let port_sound =
        port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port));
    ensure!(
        sound && port_sound,
        "preview_domain: '{text}' must be a domain in lower case, with :port if clients need one, and no scheme or path"
    );
    Ok(())
}

fn network(config: &Config) -> anyhow::Result<()> {
    let prefix = &config.network_prefix;
    if !(1..=8).contains(&prefix.len()) || !prefix.bytes().all(|b| b.is_ascii_lowercase()) {
        bail!("network_prefix is '{prefix}': it must be 1 to 8 lower-case letters");
    }
    let pool = parse_network(&config.network_pool).context("network_pool")?;
    ensure!(pairs(&pool) >= MIN_LINKS, "network_pool is {pool}: it must have 4 or more addresses (/30), two a machine");
    if !PRIVATE.iter().any(|range| range.contains(&pool)) {
        let ranges: Vec<String> = PRIVATE.iter().map(Ipv4Net::to_string).collect();
        bail!("network_pool is {pool}: it must be inside one of {}, whose addresses nobody has", ranges.join(", "));
    }
    ensure!(!pool.contains(&GATEWAY), "network_pool is {pool}: it must not hold {GATEWAY}, which every guest has");
    for text in &config.network_allow {
        text.parse::<Allowed>().context("network_allow")?;
    }
    for text in &config.dns {
        let address: Ipv4Addr =
            text.parse().ok().with_context(|| format!("dns: '{text}' must be the IPv4 address of a name server"))?;
        let reachable = !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
        ensure!(reachable && !address.is_broadcast(), "dns: {address} is no name server that a guest can reach");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{KEYS, Kind};
    use super::*;

    fn set(key: &str, value: &str) -> anyhow::Result<Config> {
        let variable = format!("NULLSPACE_{}", key.to_uppercase());
        Config::load(None, |asked| (asked == variable).then(|| value.to_owned()))
    }

    #[test]
    fn every_number_has_a_range_that_is_held_to_and_said() {
        let ranges = numbers(&Config::default());
        let named: BTreeSet<&str> = ranges.iter().map(|(name, ..)| *name).collect();
        let keys: BTreeSet<&str> =
            KEYS.iter().filter(|(_, kind)| *kind == Kind::Number).map(|(name, _)| *name).collect();
        assert_eq!(named, keys, "a number without a range");
        for (name, _, range) in ranges {
            for inside in [*range.start(), *range.end()] {
                set(name, &inside.to_string()).unwrap_or_else(|error| panic!("{name} {inside}: {error:#}"));
            }
            let below = range.start().checked_sub(1).map_or_else(|| "-1".to_owned(), |below| below.to_string());
            for outside in [below, (range.end() + 1).to_string(), "4294967296".into(), i64::MAX.to_string()] {
                let error = format!("{:#}", set(name, &outside).unwrap_err());
                assert!(error.contains(name) || error.contains(&name.to_uppercase()), "{name} {outside}: {error}");
                if outside != "-1" && outside.parse::<u32>().is_ok() {
                    let said = format!("{} to {}", range.start(), range.end());
                    assert!(error.contains(&said), "{name} {outside}: {error}");
                }
            }
        }
    }

    #[test]
    fn texts_that_no_setting_can_be_are_refused_by_name() {
        for (key, wrong, right) in [
            ("network_pool", vec!["10.0.0.0/31", "10.0.0.1", "8.8.8.0/24", "0.0.0.0/0", "127.0.0.0/8"], "10.9.0.0/16"),
            (
                "network_pool",
                vec!["172.16.0.0/12", "172.30.255.0/24", "10.0.0.0/7", "100.0.0.0/8", "x"],
                "192.168.4.0/30",
            ),
            ("network_pool", vec!["169.254.0.0/16", "224.0.0.0/8", "100.96.0.1/16"], "100.96.0.0/16"),
            ("network_prefix", vec!["ABC", "toolongname", "a1"], "abc"),
            ("network_allow", vec!["10.0.0.0/8:0", "host:1", "10.0.0.1/8"], "10.0.0.1:443,10.2.0.0/16"),
            ("dns", vec!["127.0.0.53", "0.0.0.0", "::1", "dns.example"], "1.1.1.1"),
            ("plain_http_registries", vec!["http://r:5000", "r/x", "a b"], "r.example:5000"),
            (
                "registry_mirrors",
                vec!["docker.io=r:5000", "docker.io=http://", "d/x=http://r"],
                "docker.io=http://r:5000",
            ),
            (
                "preview_domain",
                vec![
                    "Boxes.example",
                    "http://x",
                    "x/",
                    ".x",
                    "x.",
                    "a..b",
                    "-a",
                    "x:",
                    "x:0",
                    "x:01",
                    "x:65536",
                    "*.x",
                ],
                "boxes.example",
            ),
            ("preview_domain", vec!["a b", "a_b", "bücher.example"], "localhost:3000"),
            ("preview_scheme", vec!["ftp", "HTTPS"], "http"),
            ("preview_proxies", vec!["proxy", "10.0.0.0/33", "10.0.0.1:80"], "10.0.0.1,fd00::/8"),
            ("ecr_endpoint", vec!["host", "ftp://x", "https://"], "https://x/"),
            ("gcp_token_url", vec!["host", "http:// x"], "http://x/token"),
            ("metrics_token", vec!["a b", "ä"], "token"),
            ("database", vec!["nullspace.db", "sqlite://x", "postgres://u@h:port/d"], "postgres://u:p@h:5432/d"),
            ("vmm", vec!["xen"], "qemu"),
            ("accel", vec!["hax"], "tcg"),
            ("network", vec!["bridge"], "user"),
            ("log_format", vec!["xml"], "json"),
            ("listen", vec!["3000", "localhost:3000", "127.0.0.1:65536"], "127.0.0.1:0"),
        ] {
            for text in wrong {
                let error = format!("{:#}", set(key, text).err().unwrap_or_else(|| panic!("{key} {text}")));
                let named = error.contains(key) || error.to_lowercase().contains(&format!("nullspace_{key}"));
                assert!(named, "{key} {text}: {error}");
            }
            set(key, right).unwrap_or_else(|error| panic!("{key} {right}: {error:#}"));
        }
    }

    #[test]
    fn machines_in_software_are_refused_where_the_settings_forbid_them() {
        let load = |lines: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), lines).unwrap();
            Config::load(Some(file.path()), |_| None).map_err(|error| format!("{error:#}"))
        };
        for vmm in ["qemu", "auto"] {
            let error = load(&format!("require_kvm = true\naccel = 'tcg'\nvmm = '{vmm}'")).unwrap_err();
            assert!(error.contains("require_kvm") && error.contains("accel"), "{vmm}: {error}");
            load(&format!("accel = 'tcg'\nvmm = '{vmm}'")).unwrap();
            // Whether the host has KVM is found out at the start.
            load(&format!("require_kvm = true\nvmm = '{vmm}'")).unwrap();
        }
        // Firecracker has no other accelerator.
        load("require_kvm = true\naccel = 'tcg'\nvmm = 'firecracker'").unwrap();
    }

    #[test]
    fn empty_texts_of_the_file_are_refused() {
        for line in
            ["data_dir = ''", "qemu = ''", "guest_dir = ''", "metrics_token = ''", "buildkit = []", "dns = ['']"]
        {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), line).unwrap();
            let error = format!("{:#}", Config::load(Some(file.path()), |_| None).expect_err(line));
            assert!(error.contains(line.split(' ').next().unwrap()), "{line}: {error}");
        }
    }
}
