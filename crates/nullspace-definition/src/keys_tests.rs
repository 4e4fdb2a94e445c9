//! Tests of every key's inputs: equal inputs give equal keys, and each changed input gives another key.

use serde_json::{Value, json};

use super::*;
use crate::context::{PlannedContext, PlannedEntry};
use crate::definition::Source;
use crate::readiness::{Readiness, Timing};
use crate::runtime::{RuntimeWish, StartCommand};
use crate::steps::lay;

/// An empty definition.
fn definition() -> Definition {
    Definition {
        source: Source::BaseTar { sha256: String::new() },
        steps: Vec::new(),
        context: PlannedContext::default(),
        machine: MachineSize { vcpus: 1, memory_mib: 512, internet_access: true, disk_mb: None },
        build_envs: BTreeMap::new(),
        start_cmd: None,
        resume_cmd: None,
        runtime: RuntimeWish::default(),
        skip_cache: false,
        authenticated: false,
    }
}

/// The inputs of a layer's key, to be changed one by one.
#[derive(Clone)]
struct Inputs {
    tenant: TenantId,
    parent: String,
    disk_bytes: u64,
    envs: BTreeMap<String, String>,
    network: bool,
    guest: String,
    agent_abi: u32,
    context: PlannedContext,
    generations: HashMap<String, u64>,
    user: Option<String>,
    workdir: String,
    steps: Value,
}

fn blob(digit: &str, bytes: u64) -> String {
    format!("sha256-{}-{bytes}", digit.repeat(64))
}

fn inputs() -> Inputs {
    let entry = |blob: Option<String>, mode| PlannedEntry { mode, blob, inline: false };
    Inputs {
        tenant: TenantId::from_uuid(uuid::Uuid::from_u128(1)),
        parent: "parent".into(),
        disk_bytes: 1 << 30,
        envs: BTreeMap::from([("A".into(), "1".into())]),
        network: true,
        guest: "guest".into(),
        agent_abi: 3,
        context: PlannedContext(BTreeMap::from([
            ("a".into(), entry(Some(blob("1", 1)), None)),
            ("d".into(), entry(None, Some(0o700))),
            ("d/b".into(), entry(Some(blob("2", 2)), Some(0o600))),
        ])),
        generations: HashMap::new(),
        user: None,
        workdir: "/workspace".into(),
        steps: json!([{"action": "run", "command": "make"}]),
    }
}

impl Inputs {
    fn key(&self) -> String {
        let steps: Vec<TemplateStep> = serde_json::from_value(self.steps.clone()).unwrap();
        let laid = lay(&steps, At { user: self.user.clone(), workdir: self.workdir.clone() });
        let ground = Ground {
            tenant: self.tenant,
            disk_bytes: self.disk_bytes,
            envs: &self.envs,
            guest: &self.guest,
            agent_abi: self.agent_abi,
            generations: &self.generations,
        };
        let machine = MachineSize { internet_access: self.network, ..definition().machine };
        let definition = Definition { context: self.context.clone(), machine, ..definition() };
        definition.layer_key(&ground, &self.parent, laid.units.last().unwrap())
    }

    fn with(&self, change: impl FnOnce(&mut Inputs)) -> Inputs {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }
}

/// Checks that all keys differ.
fn distinct(keys: impl IntoIterator<Item = (String, String)>) {
    let mut seen: HashMap<String, String> = HashMap::new();
    for (key, what) in keys {
        if let Some(other) = seen.insert(key, what.clone()) {
            panic!("the same key: {what} and {other}");
        }
    }
}

#[test]
fn every_input_of_a_layer_counts() {
    let base = inputs();
    assert_eq!(base.key(), inputs().key());
    let changes: Vec<(&str, Inputs)> = vec![
        ("nothing", base.clone()),
        ("tenant", base.with(|i| i.tenant = TenantId::from_uuid(uuid::Uuid::from_u128(2)))),
        ("parent", base.with(|i| i.parent = "other".into())),
        ("disk", base.with(|i| i.disk_bytes += 1)),
        ("variable's value", base.with(|i| drop(i.envs.insert("A".into(), "2".into())))),
        ("variable's name", base.with(|i| i.envs = BTreeMap::from([("B".into(), "1".into())]))),
        ("variables moved", base.with(|i| i.envs = BTreeMap::from([("A1".into(), "".into())]))),
        ("no variables", base.with(|i| i.envs.clear())),
        ("network", base.with(|i| i.network = false)),
        ("guest", base.with(|i| i.guest = "other".into())),
        ("agent", base.with(|i| i.agent_abi += 1)),
        ("user", base.with(|i| i.user = Some("app".into()))),
        ("empty user", base.with(|i| i.user = Some(String::new()))),
        ("workdir", base.with(|i| i.workdir = "/".into())),
    ];
    distinct(changes.into_iter().map(|(what, inputs)| (inputs.key(), what.to_owned())));
    // What the step does not touch does not count.
    let others = base.with(|i| {
        i.context.0.clear();
        i.generations.insert(blob("1", 1), 9);
    });
    assert_eq!(others.key(), base.key());
}

#[test]
fn every_field_of_every_action_counts() {
    let steps = [
        json!([{"action": "run", "command": "make"}]),
        json!([{"action": "run", "command": "make "}]),
        json!([{"action": "run", "command": "make", "user": "app"}]),
        json!([{"action": "user", "user": "app"}, {"action": "run", "command": "make"}]),
        json!([{"action": "workdir", "path": "/x"}, {"action": "run", "command": "make"}]),
        json!([{"action": "workdir", "path": "/y"}, {"action": "workdir", "path": "/x"}, {"action": "run", "command": "make"}]),
        json!([{"action": "workdir", "path": "/x"}]),
        json!([{"action": "user", "user": "app"}, {"action": "workdir", "path": "/x"}]),
        json!([{"action": "apt_install", "packages": ["a", "b"]}]),
        json!([{"action": "apt_install", "packages": ["ab"]}]),
        json!([{"action": "apt_install", "packages": ["b", "a"]}]),
        json!([{"action": "pip_install", "packages": ["a", "b"]}]),
        json!([{"action": "pip_install", "packages": ["a", "b"], "g": false}]),
        json!([{"action": "npm_install", "packages": ["a", "b"]}]),
        json!([{"action": "npm_install", "packages": ["a", "b"], "g": true}]),
        json!([{"action": "bun_install", "packages": ["a", "b"]}]),
        json!([{"action": "bun_install", "packages": ["a", "b"], "g": true}]),
        json!([{"action": "git_clone", "url": "u"}]),
        json!([{"action": "git_clone", "url": "v"}]),
        json!([{"action": "git_clone", "url": "u", "path": "p"}]),
        json!([{"action": "git_clone", "url": "u", "branch": "p"}]),
        json!([{"action": "git_clone", "url": "u", "depth": 1}]),
        json!([{"action": "git_clone", "url": "u", "depth": 2}]),
        json!([{"action": "make_dir", "path": "/a"}]),
        json!([{"action": "make_dir", "path": "/a", "mode": "0700"}]),
        json!([{"action": "make_dir", "path": "/a", "mode": "0"}]),
        json!([{"action": "make_symlink", "target": "a", "path": "bc"}]),
        json!([{"action": "make_symlink", "target": "ab", "path": "c"}]),
        json!([{"action": "remove", "path": "a"}]),
        json!([{"action": "remove", "path": "a", "recursive": true}]),
        json!([{"action": "remove", "path": "a", "force": true}]),
        json!([{"action": "rename", "src": "a", "dst": "bc"}]),
        json!([{"action": "rename", "src": "ab", "dst": "c"}]),
        json!([{"action": "copy", "sources": ["a"], "dst": "x"}]),
        json!([{"action": "copy", "sources": ["a"], "dst": "x/"}]),
        json!([{"action": "copy", "sources": ["a"], "dst": "x", "user": "app"}]),
        json!([{"action": "copy", "sources": ["a"], "dst": "x", "mode": "0700"}]),
        json!([{"action": "copy", "sources": ["d"], "dst": "x"}]),
        json!([{"action": "copy", "sources": ["d/b"], "dst": "x"}]),
        json!([{"action": "copy", "sources": ["."], "dst": "x"}]),
        json!([{"action": "copy", "sources": ["a", "d"], "dst": "x/"}]),
        json!([{"action": "copy", "sources": ["d", "a"], "dst": "x/"}]),
        json!([{"action": "copy_items", "items": [
            {"sources": ["a"], "dst": "x/"}, {"sources": ["d"], "dst": "x/"}]}]),
    ];
    let key = |steps: &Value| inputs().with(|i| i.steps = steps.clone()).key();
    distinct(steps.iter().map(|steps| (key(steps), steps.to_string())));
    for (one, other) in [
        (
            json!([{"action": "make_dir", "path": "/a", "mode": "0755"}]),
            json!([{"action": "make_dir", "path": "/a", "mode": 493}]),
        ),
        (
            json!([{"action": "copy", "sources": ["a"], "dst": "x"}]),
            json!([{"action": "copy_items", "items": [{"sources": ["./a"], "dst": "x"}]}]),
        ),
        (
            json!([{"action": "npm_install", "packages": ["a"]}]),
            json!([{"action": "npm_install", "packages": ["a"], "g": false}]),
        ),
        (
            json!([{"action": "run", "command": "x"}]),
            json!([{"action": "skip_cache"}, {"action": "run", "command": "x"}]),
        ),
    ] {
        assert_eq!(key(&one), key(&other), "{one} and {other} mean the same");
    }
}

#[test]
fn every_property_of_a_copied_file_counts() {
    let copy = inputs().with(|i| i.steps = json!([{"action": "copy", "sources": ["d"], "dst": "x"}]));
    let entry = |i: &mut Inputs, path: &str, change: &dyn Fn(&mut PlannedEntry)| {
        change(i.context.0.entry(path.into()).or_default());
    };
    let changes: Vec<(&str, Inputs)> = vec![
        ("nothing", copy.clone()),
        ("content", copy.with(|i| entry(i, "d/b", &|e| e.blob = Some(blob("3", 2))))),
        ("size", copy.with(|i| entry(i, "d/b", &|e| e.blob = Some(blob("2", 3))))),
        ("mode", copy.with(|i| entry(i, "d/b", &|e| e.mode = Some(0o644)))),
        ("folder's mode", copy.with(|i| entry(i, "d", &|e| e.mode = Some(0o755)))),
        ("another file", copy.with(|i| entry(i, "d/c", &|e| e.blob = Some(blob("2", 2))))),
        ("another folder", copy.with(|i| entry(i, "d/c", &|_| {}))),
        ("generation", copy.with(|i| i.generations = HashMap::from([(blob("2", 2), 1)]))),
        ("next generation", copy.with(|i| i.generations = HashMap::from([(blob("2", 2), 2)]))),
        (
            "file's name",
            copy.with(|i| {
                let moved = i.context.0.remove("d/b").unwrap();
                i.context.0.insert("d/e".into(), moved);
            }),
        ),
    ];
    distinct(changes.into_iter().map(|(what, inputs)| (inputs.key(), what.to_owned())));
    let outside = copy.with(|i| entry(i, "a", &|e| e.blob = Some(blob("9", 9))));
    assert_eq!(outside.key(), copy.key(), "files that are not copied do not count");
}

/// The key of an artifact.
fn artifact(
    tenant: TenantId,
    root: &str,
    runtime: &Runtime,
    build_envs: &BTreeMap<String, String>,
    machine: &MachineSize,
    disk_bytes: u64,
    host: &str,
) -> String {
    let definition = Definition { build_envs: build_envs.clone(), machine: *machine, ..definition() };
    definition.artifact_key(&Finished { tenant, root, runtime, disk_bytes, host })
}

#[test]
fn every_input_of_an_artifact_counts() {
    let host = "class of the host";
    let runtime = Runtime { start: Some(StartCommand::shell("serve")), ..Runtime::default() };
    let size = MachineSize { vcpus: 1, memory_mib: 512, internet_access: true, disk_mb: None };
    let none = BTreeMap::new();
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(1));
    let other = TenantId::from_uuid(uuid::Uuid::from_u128(2));
    let of =
        |runtime: &Runtime, size: MachineSize, host: &str| artifact(tenant, "root", runtime, &none, &size, 1, host);
    let wish = |wish: RuntimeWish| runtime.clone().with(None, None, &wish);
    let ready = |port| Some(Readiness::Tcp { port, timing: Timing::default() });
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let keys = vec![
        (of(&runtime, size, host), "nothing"),
        (artifact(other, "root", &runtime, &none, &size, 1, host), "tenant"),
        (artifact(tenant, "other", &runtime, &none, &size, 1, host), "root"),
        (artifact(tenant, "root", &runtime, &one("A", "1"), &size, 1, host), "build variable"),
        (artifact(tenant, "root", &runtime, &none, &size, 2, host), "disk"),
        (of(&Runtime { start: Some(StartCommand::shell("other")), ..runtime.clone() }, size, host), "start command"),
        (of(&Runtime { start: None, ..runtime.clone() }, size, host), "no start command"),
        (of(&wish(RuntimeWish { user: Some("app".into()), ..RuntimeWish::default() }), size, host), "user"),
        (of(&wish(RuntimeWish { workdir: Some("/".into()), ..RuntimeWish::default() }), size, host), "workdir"),
        (of(&wish(RuntimeWish { envs: one("A", "1"), ..RuntimeWish::default() }), size, host), "variable"),
        (of(&wish(RuntimeWish { envs: one("A", "2"), ..RuntimeWish::default() }), size, host), "variable's value"),
        (of(&wish(RuntimeWish { envs: one("A1", ""), ..RuntimeWish::default() }), size, host), "variable's name"),
        (of(&wish(RuntimeWish { readiness: ready(1), ..RuntimeWish::default() }), size, host), "readiness"),
        (of(&wish(RuntimeWish { readiness: ready(2), ..RuntimeWish::default() }), size, host), "port"),
        (of(&runtime, MachineSize { vcpus: 2, ..size }, host), "processors"),
        (of(&runtime, MachineSize { memory_mib: 513, ..size }, host), "memory"),
        (of(&runtime, MachineSize { internet_access: false, ..size }, host), "network"),
        (of(&runtime, size, "other class"), "host"),
    ];
    distinct(keys.into_iter().enumerate().map(|(number, (key, what))| (key, format!("{what} ({number})"))));
    assert_ne!(image_key("layer", "build", 1), image_key("layer", "build", 2));
    assert_ne!(image_key("layerb", "uild", 1), image_key("layer", "build", 1));
}

/// Keys of the code before this module. If they change, every stored layer and artifact is made again.
#[test]
fn stored_keys_stay_what_they_were() {
    let of = |steps: Value| {
        inputs()
            .with(|i| {
                i.steps = steps;
                i.generations = HashMap::from([(blob("2", 2), 7)]);
            })
            .key()
    };
    for (steps, key) in [
        (
            json!([{"action": "run", "command": "make", "user": "app"}]),
            "44da123ab9d2b2c3d39e1d6aad374b11592409fd26db4a0b27384a841dc30934",
        ),
        (
            json!([{"action": "copy", "sources": ["a", "d"], "dst": "x/", "user": "app", "mode": "0700"}]),
            "4156a1f48b3b20151990f95c7a0177c92a5ba7aa18f88f853074d93810aafdaf",
        ),
        (
            json!([{"action": "copy_items", "items": [{"sources": ["."], "dst": "x"}, {"sources": ["a"], "dst": "y", "mode": 420}]}]),
            "bd29c9547b4ab3f2869d98145eb1e4ade7a960b34096cf9c72fffa36febb19ff",
        ),
        (
            json!([{"action": "apt_install", "packages": ["a", "b"]}]),
            "cb7efb4cdfafb210f630b2f2c4b8565e7e9bafd7e00ab0cab4d0b6612af6cef0",
        ),
        (
            json!([{"action": "pip_install", "packages": ["a"], "g": false}]),
            "017194df2253f9a1e9179c438e84abe8387e0de251ffcb72a3b2e96cb7f1cdf8",
        ),
        (
            json!([{"action": "npm_install", "packages": ["a"], "g": true}]),
            "94450d68d9e89f7a688acbc99be1f57d9405f50565f308cd77b585ed9ec2400d",
        ),
        (
            json!([{"action": "bun_install", "packages": ["a"], "g": true}]),
            "5de0915fca9c1286f5e41b728a9562a6b7cb8e74a6e9f8dd4c1174b6ef76c80e",
        ),
        (
            json!([{"action": "git_clone", "url": "u", "path": "p", "branch": "b", "depth": 2}]),
            "91fa992cd7f5cc6aced92adaa3479c1b6d379581bfb779cee753a3e7bb945c79",
        ),
        (
            json!([{"action": "make_dir", "path": "/a", "mode": "0700"}]),
            "4466845d9cb1f4a747556f39db635f9f4bffbb40b552084e1a46425df9911f05",
        ),
        (
            json!([{"action": "make_symlink", "target": "a", "path": "b"}]),
            "2e11e16db26031fc7d8c9c226049ef1010e164c68ba008716cf24a823182d197",
        ),
        (
            json!([{"action": "remove", "path": "a", "recursive": true, "force": true}]),
            "318aadcc4603e13afbb30bb09ce24ed76bbe2de09a2a4ba0212405b62af365c7",
        ),
        (
            json!([{"action": "rename", "src": "a", "dst": "b", "force": true}]),
            "59d6cd1fe07f0da8151b76f7e8d0223be8bd9ab9be3ef56e28decfa36fabc6c6",
        ),
        (
            json!([{"action": "user", "user": "app"}, {"action": "workdir", "path": "/x"}, {"action": "run", "command": "make"}]),
            "a874c2eb148e551d3179f4e80bf9a8ebd5d5d563ee6ca01195a730df4b13c2f5",
        ),
        (
            json!([{"action": "user", "user": "app"}, {"action": "workdir", "path": "/x"}]),
            "67e3a946b96b0668f817c026c1e5ab273bbfef752122fdddc901713cbac33288",
        ),
    ] {
        assert_eq!(of(steps.clone()), key, "{steps}");
    }
    let host =
        r#"{"vmm":"qemu","vmm_version":"7","accelerator":"tcg","format":1,"guest":"guest","cpu":"tcg","agent_abi":3}"#;
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let runtime = Runtime {
        envs: one("A", "1"),
        user: Some("app".into()),
        workdir: "/srv".into(),
        start: Some(StartCommand {
            dir: Some("/".into()),
            ..StartCommand::of_image(&["/app".to_owned()], &[]).unwrap()
        }),
        readiness: Some(Readiness::Command {
            command: "check".into(),
            argv: vec!["check".into()],
            attempt_secs: Some(3),
            timing: Timing::default(),
        }),
        resume: Some("renew".into()),
    };
    let size = MachineSize { vcpus: 2, memory_mib: 512, internet_access: true, disk_mb: Some(4096) };
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(1));
    let none = BTreeMap::new();
    assert_eq!(
        artifact(tenant, "root", &runtime, &one("B", "2"), &size, 1 << 32, host),
        "a00f808ab56f3a917948501aae7f4dfa291179da905e217c9ea736132085815d"
    );
    let plain = MachineSize { disk_mb: None, ..size };
    assert_eq!(
        artifact(tenant, "root", &Runtime::default(), &none, &plain, 1 << 32, host),
        "4cd4d778bc0e51ffa6dd0c056f3794b3d20ba252d4cf2a2d0bd0433d804f1db2"
    );
    assert_eq!(image_key("layer", "build", 3), "3fbd5ba28ba1a46bdeceda871562efa521ddacdeee95c697959e0ad6925268b4");
}
