//! `nullspace doctor`: each need of this host, whether it is met, and the command that meets it.

use std::path::Path;
use std::process::ExitCode;

use nullspace_host::BuilderConfig;
use nullspace_vmm::qemu::Qemu;
use rustix::fs::Access;
use secrecy::ExposeSecret as _;

use crate::config::{AccelChoice, Config, NetworkChoice, VmmChoice};
use crate::objects::{self, Use};
use crate::{buildkit, guest, serve, vmm};

const KVM: &str = "KVM (booting a guest)";

/// How much a need matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Met.
    Works,
    /// Not met; the service does without.
    Without,
    /// Not met; the service or its builds fail.
    Fails,
}

struct Finding {
    need: &'static str,
    verdict: Verdict,
    found: String,
    cure: String,
}

impl Finding {
    fn works(need: &'static str, found: impl Into<String>) -> Finding {
        Finding { need, verdict: Verdict::Works, found: found.into(), cure: String::new() }
    }

    fn without(need: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { need, verdict: Verdict::Without, found: found.into(), cure: cure.into() }
    }

    fn fails(need: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { need, verdict: Verdict::Fails, found: found.into(), cure: cure.into() }
    }
}

pub(crate) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let dir = guest::dir(config);
    let mut findings = vec![data_dir(config), guest_files(&dir), base(config)];
    let firecracker = firecracker(config, &dir).await;
    // One VMM that works is enough, unless the settings name the other.
    let enough = firecracker.verdict == Verdict::Works && config.vmm != VmmChoice::Qemu;
    findings.extend(qemu(config, &dir).await.into_iter().map(|finding| match finding.verdict {
        Verdict::Fails if enough => Finding { verdict: Verdict::Without, ..finding },
        _ => finding,
    }));
    let kvm = findings.iter().any(|finding| finding.need == KVM && finding.verdict == Verdict::Works);
    let emulated = !enough && (!kvm || config.accel == AccelChoice::Tcg);
    findings.push(firecracker);
    findings.extend(older(config));
    findings.extend(network(config));
    findings.extend(buildkits(config, emulated).await);
    findings.extend(object_store(config).await);
    findings.extend(database(config).await);

    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Works => "works  ",
            Verdict::Without => "without",
            Verdict::Fails => "FAILS  ",
        };
        println!("{mark}  {}: {}", finding.need, finding.found);
        if !finding.cure.is_empty() {
            println!("         cure: {}", finding.cure);
        }
    }
    let failing = findings.iter().filter(|finding| finding.verdict == Verdict::Fails).count();
    if failing > 0 {
        println!("\n{failing} needs are not met");
        return Ok(ExitCode::FAILURE);
    }
    println!("\nthe service can run here");
    Ok(ExitCode::SUCCESS)
}

/// The object store of the settings, if there is one.
async fn object_store(config: &Config) -> Option<Finding> {
    const NEED: &str = "object store (s3_bucket)";
    const CURE: &str =
        "correct the s3_… settings, the credentials or the store: docs/object-store.md says what it must be able to do";
    let settings = match objects::settings(config) {
        Ok(settings) => settings?,
        Err(error) => return Some(Finding::fails(NEED, format!("{error:#}"), CURE)),
    };
    Some(match objects::reach(&settings.objects, Use::Write).await {
        Ok(()) => Finding::works(NEED, format!("{}: an object was put, read and deleted", settings.objects.location())),
        Err(error) => Finding::fails(NEED, format!("{error:#}"), CURE),
    })
}

/// The PostgreSQL database of the settings, if there is one. Nothing of it is changed.
async fn database(config: &Config) -> Option<Finding> {
    const NEED: &str = "PostgreSQL (database)";
    let url = config.database.as_ref()?;
    Some(match nullspace_db::PostgresStore::about(url.expose_secret()).await {
        Ok(about) => Finding::works(NEED, about),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            Finding::fails(NEED, error, "correct the setting database or the server: docs/postgresql.md")
        }
    })
}

const BUILDKIT: &str = "BuildKit (Dockerfile builds)";

/// Each BuildKit for Dockerfiles.
async fn buildkits(config: &Config, emulated: bool) -> Vec<Finding> {
    const NEED: &str = BUILDKIT;
    const CURE: &str = "make builder, or apt-get install docker.io, or buildkit = [\"unix:///path\"]";
    let kits = match buildkit::choose(config) {
        Ok(buildkit::Choice::Engines(kits)) => kits,
        Ok(buildkit::Choice::Machines(machines)) => return vec![builders(config, &machines, emulated)],
        Err(error) => return vec![Finding::fails(NEED, format!("{error:#}"), "correct the settings")],
    };
    if kits.is_empty() {
        return vec![Finding::without(NEED, "none found: Dockerfile builds are refused, everything else works", CURE)];
    }
    let mut findings = Vec::new();
    for kit in kits {
        findings.push(match kit.about().await {
            Ok(about) => {
                let platforms = about.platforms.join(", ");
                let found = format!("{}: {}, {platforms}; shared by all tenants", kit.endpoint(), about.version);
                Finding::works(NEED, found)
            }
            // Another may do; that none does is said at submission.
            Err(error) => Finding::without(NEED, format!("{error}"), "start it, or take it out of the settings"),
        });
    }
    findings
}

/// Builder machines.
fn builders(config: &Config, machines: &BuilderConfig, emulated: bool) -> Finding {
    let (tar, memory, disk) = (machines.tar.display(), machines.memory_mib, machines.disk_mib);
    let mut found = format!(
        "builder machines, one for each tenant, from {tar}: {memory} MiB of memory and a disk of up to {disk} MiB each"
    );
    let most = match serve::capacity(config) {
        Ok(capacity) => capacity.memory_mib.min(config.memory_mib_per_tenant.unwrap_or(u64::MAX)),
        Err(error) => return Finding::fails(BUILDKIT, format!("{error:#}"), "correct the settings"),
    };
    // The VMM needs some more.
    if u64::from(memory) >= most {
        let found = format!("{found}; machines have {most} MiB here: Dockerfile builds are refused");
        return Finding::without(
            BUILDKIT,
            found,
            "lower builder_memory_mib, or raise memory_mib or memory_mib_per_tenant",
        );
    }
    if emulated {
        found.push_str("; slow in software emulation: half a minute and more for the first build");
    }
    Finding::works(BUILDKIT, found)
}

fn data_dir(config: &Config) -> Finding {
    const NEED: &str = "data folder";
    let shown = config.data_dir.display();
    // One that is not there stays so: `serve` makes it.
    let (place, state) = match vmm::existing(&config.data_dir) {
        place if place == config.data_dir => (place, "writable"),
        place => (place, "not there yet, and can be made"),
    };
    let tried = match std::fs::metadata(&place) {
        Ok(found) if !found.is_dir() => Err(std::io::ErrorKind::NotADirectory.into()),
        Ok(_) => rustix::fs::access(&place, Access::WRITE_OK | Access::EXEC_OK).map_err(std::io::Error::from),
        Err(error) => Err(error),
    };
    if let Err(error) = tried {
        let found = format!("{shown}: {}: {error}", place.display());
        return Finding::fails(NEED, found, "choose another with --data-dir, or correct its owner");
    }
    match rustix::fs::statvfs(&place) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
            if free < 4096 {
                return Finding::fails(
                    NEED,
                    format!("{shown}: {free} MiB free"),
                    "free space: a template takes up to a GiB",
                );
            }
            Finding::works(NEED, format!("{shown}: {state}, {free} MiB free"))
        }
        Err(error) => Finding::fails(NEED, format!("{shown}: {error}"), "choose another with --data-dir"),
    }
}

fn guest_files(dir: &Path) -> Finding {
    const NEED: &str = "guest kernel and initramfs";
    if guest::missing(dir).is_empty() {
        let version = std::fs::read_to_string(dir.join("kernel.version")).unwrap_or_default();
        let version = version.lines().next().unwrap_or_default().trim().to_owned();
        Finding::works(NEED, format!("{} {version}", dir.display()))
    } else {
        Finding::fails(NEED, format!("not in {}", dir.display()), "make guest")
    }
}

fn base(config: &Config) -> Finding {
    const NEED: &str = "root of template base";
    match guest::base_tar(config) {
        Some(path) if path.exists() => Finding::works(NEED, path.display().to_string()),
        Some(path) => Finding::fails(NEED, format!("{} is not there", path.display()), "make base, or fix base_tar"),
        None => Finding::without(NEED, "none: nullspace/base is not offered", "make base"),
    }
}

/// The older programs that the settings name. The service does not start without them.
fn older(config: &Config) -> Vec<Finding> {
    let qemu = config.older_qemu.iter().map(|program| ("older QEMU", program));
    let firecracker = config.older_firecracker.iter().map(|program| ("older Firecracker", program));
    let found = |(need, program): (&'static str, &std::path::PathBuf)| match vmm::find(program) {
        Some(path) => Finding::works(need, path.display().to_string()),
        None => {
            let cure = "install it, or take it out of the settings: templates that need it must then be built again";
            Finding::fails(need, format!("{} is not there", program.display()), cure)
        }
    };
    qemu.chain(firecracker).map(found).collect()
}

async fn qemu(config: &Config, dir: &Path) -> Vec<Finding> {
    const NEED: &str = "QEMU";
    if !guest::missing(dir).is_empty() {
        return vec![Finding::fails(NEED, "cannot be tried without the guest's files", "make guest")];
    }
    let report = match Qemu::probe(&vmm::qemu_config(config, dir)).await {
        Ok(report) => report,
        Err(error) => return vec![Finding::fails(NEED, error.to_string(), "apt-get install qemu-system-x86")],
    };
    let mut findings = vec![Finding::works(NEED, report.vmm_version)];
    const WALLS: &str = "walls around QEMU";
    findings.push(match report.missing_walls.is_empty() {
        true => Finding::works(WALLS, report.walls),
        false => Finding::without(
            WALLS,
            format!("{}; without {}", report.walls, report.missing_walls.join(", ")),
            "run as root on Linux 6.2 or newer with Landlock (boot parameter lsm=landlock,…)",
        ),
    });
    for accelerator in report.accelerators {
        let kvm = accelerator.accelerator == "kvm";
        let need = if kvm { KVM } else { "software emulation (booting a guest)" };
        findings.push(match (accelerator.works, kvm) {
            (true, _) => Finding::works(need, accelerator.detail),
            (false, true) => {
                Finding::without(need, accelerator.detail, "a host with working virtualisation; software is slower")
            }
            (false, false) => Finding::fails(need, accelerator.detail, "apt-get install --reinstall qemu-system-x86"),
        });
    }
    findings
}

async fn firecracker(config: &Config, dir: &Path) -> Finding {
    const NEED: &str = "Firecracker (booting a guest)";
    if vmm::find(&config.firecracker).is_none() {
        let cure = "install firecracker and jailer from its releases into PATH; QEMU is used without";
        return Finding::without(NEED, "not in PATH", cure);
    }
    let tried = async {
        let firecracker = vmm::firecracker(config, dir, None).await?;
        let took = vmm::try_guest(config, &firecracker).await?;
        anyhow::Ok((firecracker, took))
    };
    match tried.await {
        Ok((firecracker, took)) => {
            let jail =
                if firecracker.is_jailed() { "jailed" } else { "not jailed: that needs root and the jailer in PATH" };
            Finding::works(
                NEED,
                format!("{}, a guest booted in {} ms, {jail}", firecracker.version(), took.as_millis()),
            )
        }
        Err(error) => {
            let cure = "a host with working virtualisation (KVM); QEMU is used without";
            Finding::without(NEED, format!("{error:#}"), cure)
        }
    }
}

fn network(config: &Config) -> Vec<Finding> {
    const NEED: &str = "networks of machines";
    if config.network == NetworkChoice::User {
        return vec![Finding::without(
            NEED,
            "QEMU's user network, as set: machines reach this host's loopback",
            "network = \"auto\"",
        )];
    }
    if !rustix::process::geteuid().is_root() {
        let found = "not root: QEMU's user network, through which machines reach this host's loopback";
        return vec![Finding::without(NEED, found, "run the service as root")];
    }
    [("ip", "-V", "iproute2"), ("nft", "--version", "nftables")]
        .into_iter()
        .map(|(program, flag, package)| {
            let found = vmm::find(Path::new(program)).ok_or_else(|| format!("{program} is missing"));
            match found.and_then(|path| version(&path, flag)) {
                Ok(version) => Finding::works(NEED, version),
                Err(why) => Finding::fails(NEED, why, format!("apt-get install {package}")),
            }
        })
        .collect()
}

/// What a program says of its version, or why it does not.
fn version(program: &Path, flag: &str) -> Result<String, String> {
    let shown = program.display();
    let output = std::process::Command::new(program).arg(flag).output().map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next().map(str::trim).filter(|line| output.status.success() && !line.is_empty()) {
        Some(line) => Ok(format!("{shown}: {line}")),
        None => Err(format!("{shown} {flag} ended with {}", output.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builder_machines_are_judged_by_the_room_for_them() {
        let tar = tempfile::NamedTempFile::new().unwrap();
        let config = Config {
            builder_tar: Some(tar.path().to_owned()),
            builder_memory_mib: 1024,
            memory_mib: Some(4096),
            ..Config::default()
        };
        let judged = |config: &Config, emulated| {
            let Ok(buildkit::Choice::Machines(machines)) = buildkit::choose(config) else { panic!("no machines") };
            builders(config, &machines, emulated)
        };
        let fits = judged(&config, false);
        assert!(fits.verdict == Verdict::Works && !fits.found.contains("slow"), "{}", fits.found);
        assert!(judged(&config, true).found.contains("slow in software emulation"));
        for small in [
            Config { memory_mib: Some(1024), ..config.clone() },
            Config { memory_mib_per_tenant: Some(512), ..config.clone() },
        ] {
            let judged = judged(&small, false);
            assert!(
                judged.verdict == Verdict::Without && judged.cure.contains("builder_memory_mib"),
                "{}",
                judged.found
            );
        }
    }
}
