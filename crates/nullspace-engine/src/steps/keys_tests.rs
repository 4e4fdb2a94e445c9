//! Every input of every key: left alone, the key stays; changed, it is another.

use serde_json::{Value, json};

use super::*;
use crate::context::PlannedEntry;
use crate::plan::{RuntimeWish, StartCommand};
use crate::readiness::{Readiness, Timing};
use crate::steps::units::{At, lay};

/// All that a layer's key is made of, to be changed one by one.
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
            network: self.network,
            guest: &self.guest,
            agent_abi: self.agent_abi,
            context: &self.context,
            generations: &self.generations,
        };
        layer(&ground, &self.parent, laid.units.last().unwrap())
    }

    fn with(&self, change: impl FnOnce(&mut Inputs)) -> Inputs {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }
}

/// The keys must all differ.
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

#[test]
fn every_input_of_an_artifact_counts() {
    let host = Compatibility {
        vmm: nullspace_vmm::VmmKind::Qemu,
        vmm_version: "7".into(),
        accelerator: "tcg".into(),
        format: 1,
        guest: "guest".into(),
        cpu: "tcg".into(),
        agent_abi: 3,
    };
    let runtime = Runtime { start: Some(StartCommand::shell("serve")), ..Runtime::default() };
    let size = MachineSize { vcpus: 1, memory_mib: 512, internet_access: true, disk_mb: None };
    let none = BTreeMap::new();
    let tenant = TenantId::from_uuid(uuid::Uuid::from_u128(1));
    let other = TenantId::from_uuid(uuid::Uuid::from_u128(2));
    let of = |runtime: &Runtime, size: MachineSize, host: &Compatibility| {
        artifact(tenant, "root", runtime, &none, &size, 1, host)
    };
    let wish = |wish: RuntimeWish| runtime.clone().with(None, None, &wish);
    let ready = |port| Some(Readiness::Tcp { port, timing: Timing::default() });
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let mut keys = vec![
        (of(&runtime, size, &host), "nothing"),
        (artifact(other, "root", &runtime, &none, &size, 1, &host), "tenant"),
        (artifact(tenant, "other", &runtime, &none, &size, 1, &host), "root"),
        (artifact(tenant, "root", &runtime, &one("A", "1"), &size, 1, &host), "build variable"),
        (artifact(tenant, "root", &runtime, &none, &size, 2, &host), "disk"),
        (of(&Runtime { start: Some(StartCommand::shell("other")), ..runtime.clone() }, size, &host), "start command"),
        (of(&Runtime { start: None, ..runtime.clone() }, size, &host), "no start command"),
        (of(&wish(RuntimeWish { user: Some("app".into()), ..RuntimeWish::default() }), size, &host), "user"),
        (of(&wish(RuntimeWish { workdir: Some("/".into()), ..RuntimeWish::default() }), size, &host), "workdir"),
        (of(&wish(RuntimeWish { envs: one("A", "1"), ..RuntimeWish::default() }), size, &host), "variable"),
        (of(&wish(RuntimeWish { envs: one("A", "2"), ..RuntimeWish::default() }), size, &host), "variable's value"),
        (of(&wish(RuntimeWish { envs: one("A1", ""), ..RuntimeWish::default() }), size, &host), "variable's name"),
        (of(&wish(RuntimeWish { readiness: ready(1), ..RuntimeWish::default() }), size, &host), "readiness"),
        (of(&wish(RuntimeWish { readiness: ready(2), ..RuntimeWish::default() }), size, &host), "port"),
        (of(&runtime, MachineSize { vcpus: 2, ..size }, &host), "processors"),
        (of(&runtime, MachineSize { memory_mib: 513, ..size }, &host), "memory"),
        (of(&runtime, MachineSize { internet_access: false, ..size }, &host), "network"),
    ];
    let hosts = [
        Compatibility { vmm: nullspace_vmm::VmmKind::Firecracker, ..host.clone() },
        Compatibility { vmm_version: "8".into(), ..host.clone() },
        Compatibility { accelerator: "kvm".into(), ..host.clone() },
        Compatibility { format: 2, ..host.clone() },
        Compatibility { guest: "other".into(), ..host.clone() },
        Compatibility { cpu: "other".into(), ..host.clone() },
        Compatibility { agent_abi: 4, ..host.clone() },
    ];
    keys.extend(hosts.iter().map(|host| (of(&runtime, size, host), "host")));
    distinct(keys.into_iter().enumerate().map(|(number, (key, what))| (key, format!("{what} ({number})"))));
    assert_ne!(image("layer", "build", 1), image("layer", "build", 2));
    assert_ne!(image("layerb", "uild", 1), image("layer", "build", 1));
}

#[test]
fn where_a_part_ends_is_never_in_doubt() {
    let encoded = |parts: &[&str]| {
        let mut key = Encoder::new("test");
        parts.iter().for_each(|part| key.text(part));
        key.finish()
    };
    assert_ne!(encoded(&["ab", "c"]), encoded(&["a", "bc"]));
    assert_ne!(encoded(&["abc"]), encoded(&["abc", ""]));
    let lists = |one: &[&str], two: &[&str]| {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut key = Encoder::new("test");
        key.texts(&owned(one));
        key.texts(&owned(two));
        key.finish()
    };
    assert_ne!(lists(&["a", "b"], &[]), lists(&["a"], &["b"]));
    assert_ne!(lists(&["a"], &["b"]), lists(&[], &["a", "b"]));
}
