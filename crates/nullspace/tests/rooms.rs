//! The rules of the house, held against `cargo metadata` and the sources: which crate may know which, and what may not pass the
//! border of control. docs/architecture.md draws the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each crate, and those of the workspace that it may use. A crate that is not here, or an arrow that is not, fails the test: add
/// it here and to the table in docs/architecture.md, with a reason that holds.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("nullspace-api", &[]),
    ("nullspace-types", &[]),
    ("nullspace-image-ref", &[]),
    ("nullspace-chunks", &[]),
    ("nullspace-ext4", &[]),
    ("nullspace-guest", &[]),
    ("nullspace-buildkit", &[]),
    ("nullspace-objects", &[]),
    ("nullspace-reach", &[]),
    ("nullspace-oci", &["nullspace-image-ref", "nullspace-reach"]),
    ("nullspace-rootfs", &["nullspace-ext4", "nullspace-oci"]),
    ("nullspace-vmm", &["nullspace-guest", "nullspace-types"]),
    ("nullspace-init", &["nullspace-guest"]),
    ("nullspace-client", &["nullspace-api"]),
    ("nullspace-service", &["nullspace-api", "nullspace-types"]),
    ("nullspace-edge", &["nullspace-api", "nullspace-service", "nullspace-types"]),
    ("nullspace-ssh", &["nullspace-api", "nullspace-service", "nullspace-types"]),
    ("nullspace-server", &["nullspace-api", "nullspace-edge", "nullspace-service"]),
    ("nullspace-definition", &["nullspace-api", "nullspace-image-ref", "nullspace-types"]),
    ("nullspace-db", &["nullspace-types"]),
    ("nullspace-data", &["nullspace-chunks", "nullspace-objects", "nullspace-types"]),
    (
        "nullspace-host-interface",
        &["nullspace-api", "nullspace-definition", "nullspace-image-ref", "nullspace-service", "nullspace-types"],
    ),
    (
        "nullspace-control",
        &[
            "nullspace-api",
            "nullspace-db",
            "nullspace-definition",
            "nullspace-host-interface",
            "nullspace-image-ref",
            "nullspace-reach",
            "nullspace-service",
            "nullspace-types",
        ],
    ),
    (
        "nullspace-host",
        &[
            "nullspace-api",
            "nullspace-buildkit",
            "nullspace-data",
            "nullspace-definition",
            "nullspace-ext4",
            "nullspace-guest",
            "nullspace-host-interface",
            "nullspace-image-ref",
            "nullspace-oci",
            "nullspace-rootfs",
            "nullspace-service",
            "nullspace-types",
            "nullspace-vmm",
        ],
    ),
];

/// Why a rule is there, for whoever breaks it.
fn purpose(name: &str) -> &'static str {
    match name {
        "nullspace-control" => {
            "control says what should be, and runs without a machine: it asks a host through nullspace-host-interface, so that \
             hosts can be other machines"
        }
        "nullspace-host" => {
            "a host knows machines and files, no database and no HTTP: what it needs of control comes with the call or through \
             BuildRecord and HostEvents"
        }
        "nullspace-host-interface" => "what passes between control and host are plain values, which can travel",
        "nullspace-db" | "nullspace-data" => {
            "database and data folder meet nowhere: names travel between them as types of nullspace-types"
        }
        "nullspace-server" => "the server is HTTP over the trait Service: it works with any implementation",
        _ => "arrows go one way, and a crate that knows less can be changed and published alone",
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// The crates of the workspace, each with those that it depends on other than for tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let asked = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("run cargo");
    assert!(asked.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&asked.stderr));
    let metadata: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    packages
        .iter()
        .map(|package| {
            let used = package["dependencies"].as_array().expect("dependencies").iter();
            let used = used.filter(|used| used["kind"] != "dev" && text(&used["name"]).starts_with("nullspace"));
            (text(&package["name"]), used.map(|used| text(&used["name"])).collect())
        })
        .collect()
}

#[test]
fn each_crate_knows_only_what_its_room_allows() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, used) in dependencies() {
        // The binary wires all of them.
        if name == "nullspace" {
            continue;
        }
        let Some(may) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} has no row in MAY_KNOW"));
            continue;
        };
        for other in used.iter().filter(|other| !may.contains(&other.as_str())) {
            wrong.push(format!("{name} must not use {other}: {}", purpose(&name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The code of a file, without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_path_of_a_file_passes_the_border_of_control() {
    let mut checked = 0;
    for name in ["nullspace-control", "nullspace-host-interface", "nullspace-service"] {
        let mut files = Vec::new();
        sources(&root().join("crates").join(name).join("src"), &mut files);
        for file in files {
            checked += 1;
            let code = code(&file);
            for word in ["PathBuf", "std::path", "std::fs", "tokio::fs"] {
                assert!(
                    !code.contains(word),
                    "{} uses {word}: a host's files have names, and only the host knows where they are, so that it can be \
                     another machine",
                    file.display()
                );
            }
        }
    }
    assert!(checked > 20, "the sources were not found: {checked}");
}

#[test]
fn the_drawing_names_every_crate() {
    let drawing = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    for name in dependencies().keys() {
        assert!(drawing.contains(&format!("| `{name}` |")), "docs/architecture.md has no row for {name}");
    }
}
