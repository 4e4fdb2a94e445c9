//! The judgement: of classes as earlier versions stored them, property by property, and of any two.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::SnapshotSummary;

/// A template's summary as the version before this one stored it in `artifacts.snapshot`, under TCG.
const STORED_TCG: &str = r#"{"compatibility":{"accelerator":"tcg","agent_abi":6,"cpu":"tcg","format":1,"guest":"8ba3d7c7a7d9","vmm":"qemu","vmm_version":"7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"},"disk_bytes":4294967296,"files":["disk.qcow2","memory","state","machine.json"],"memory_mib":512,"vcpus":1}"#;

/// A class of it under KVM, as in `artifacts.compatibility`.
const STORED_KVM: &str = r#"{"accelerator":"kvm","agent_abi":6,"cpu":"AuthenticAMD AMD EPYC 7B13, family 25 model 1 stepping 0, features 0123456789ab","format":1,"guest":"8ba3d7c7a7d9","vmm":"qemu","vmm_version":"7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"}"#;

/// The same of Firecracker.
const STORED_FIRECRACKER: &str = r#"{"accelerator":"kvm","agent_abi":6,"cpu":"AuthenticAMD 25/17/1 EPYC: 9R14","format":1,"guest":"8ba3d7c7a7d9","vmm":"firecracker","vmm_version":"1.12.1"}"#;

fn features(vendor: &str, flags: &[&str]) -> Option<CpuFeatures> {
    Some(CpuFeatures { vendor: vendor.into(), flags: flags.iter().map(|flag| (*flag).to_owned()).collect() })
}

fn kvm() -> Compatibility {
    Compatibility {
        vmm: VmmKind::Qemu,
        vmm_version: "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)".into(),
        accelerator: "kvm".into(),
        format: 1,
        guest: "a".into(),
        cpu: "AuthenticAMD AMD EPYC 7B13, family 25 model 1 stepping 0, features 0123456789ab".into(),
        agent_abi: AGENT_ABI,
        vmm_format: None,
        cpu_features: features("AuthenticAMD", &["avx", "fpu"]),
    }
}

fn tcg() -> Compatibility {
    Compatibility { accelerator: "tcg".into(), cpu: "tcg".into(), cpu_features: None, ..kvm() }
}

#[test]
fn a_summary_that_an_earlier_version_stored_is_read_judged_and_kept() {
    let summary: SnapshotSummary = serde_json::from_str(STORED_TCG).unwrap();
    assert_eq!(serde_json::to_value(&summary).unwrap().to_string(), STORED_TCG);
    let newer = Compatibility {
        vmm_version: "7.2.23 (Debian 1:7.2+dfsg-7+deb12u20)".into(),
        guest: "another kernel and initramfs".into(),
        ..tcg()
    };
    assert_eq!(summary.compatibility.conflict_with(&newer), None);
    let other = Compatibility { vmm_version: "8.2.1".into(), ..newer };
    assert_eq!(
        summary.compatibility.conflict_with(&other).unwrap(),
        "the snapshot's VMM version is 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), this host's is 8.2.1"
    );
}

#[test]
fn a_class_without_features_needs_the_cpu_that_it_names() {
    let stored: Compatibility = serde_json::from_str(STORED_KVM).unwrap();
    assert_eq!(serde_json::to_value(&stored).unwrap().to_string(), STORED_KVM);
    assert_eq!(stored.conflict_with(&kvm()), None);
    let other = Compatibility { cpu: "AuthenticAMD AMD EPYC 9R14".into(), ..kvm() };
    let conflict = stored.conflict_with(&other).unwrap();
    assert!(conflict.starts_with("the snapshot's CPU is AuthenticAMD AMD EPYC 7B13, "), "{conflict}");

    let stored: Compatibility = serde_json::from_str(STORED_FIRECRACKER).unwrap();
    assert_eq!(serde_json::to_value(&stored).unwrap().to_string(), STORED_FIRECRACKER);
    let host = Compatibility {
        vmm_version: "1.12.2".into(),
        vmm_format: Some("6.0.0".into()),
        cpu_features: features("AuthenticAMD", &["fpu"]),
        agent_abi: AGENT_ABI,
        ..stored.clone()
    };
    assert_eq!(stored.conflict_with(&host), None);
    assert!(stored.conflict_with(&Compatibility { vmm_version: "1.13.0".into(), ..host }).is_some());
}

#[test]
fn a_class_is_stored_and_read_with_all_that_it_has() {
    let firecracker = Compatibility { vmm: VmmKind::Firecracker, vmm_format: Some("6.0.0".into()), ..kvm() };
    for class in [kvm(), tcg(), firecracker] {
        let stored = serde_json::to_string(&class).unwrap();
        assert_eq!(serde_json::from_str::<Compatibility>(&stored).unwrap(), class, "{stored}");
    }
    // As earlier versions write it, so that the keys of finished artifacts stay the same.
    let written = r#""guest":"a","cpu":"tcg","agent_abi":"#;
    assert!(serde_json::to_string(&tcg()).unwrap().contains(written));
    assert!(serde_json::to_string(&tcg()).unwrap().ends_with(&format!("{AGENT_ABI}}}")));
}

#[test]
fn every_refusal_names_the_property_that_differs() {
    let host = kvm();
    let firecracker =
        |format: &str| Compatibility { vmm: VmmKind::Firecracker, vmm_format: Some(format.into()), ..kvm() };
    let many: Vec<String> = (10..20).map(|number| format!("x{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (snapshot, host, expected) in [
        (firecracker("6.0.0"), host.clone(), "the snapshot's VMM is Firecracker, this host's is QEMU"),
        (tcg(), host.clone(), "the snapshot's accelerator is tcg, this host's is kvm"),
        (Compatibility { format: 2, ..kvm() }, host.clone(), "the snapshot's format is 2, this host's is 1"),
        (
            Compatibility { vmm_version: "6.2.0".into(), ..kvm() },
            host.clone(),
            "the snapshot's VMM version is 6.2.0, this host's is 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)",
        ),
        (
            firecracker("7.0.0"),
            firecracker("6.0.0"),
            "the snapshot's Firecracker format is 7.0.0, this host's is 6.0.0",
        ),
        (
            Compatibility { cpu_features: features("GenuineIntel", &["fpu"]), ..kvm() },
            host.clone(),
            "the snapshot's CPU vendor is GenuineIntel, this host's is AuthenticAMD",
        ),
        (
            Compatibility { cpu_features: features("AuthenticAMD", &["avx512f", "fpu", "amx"]), ..kvm() },
            host.clone(),
            "the snapshot's guest may use CPU features that this host lacks: amx, avx512f",
        ),
        (
            Compatibility { cpu_features: features("AuthenticAMD", &many), ..kvm() },
            host.clone(),
            "the snapshot's guest may use CPU features that this host lacks: x10, x11, x12, x13, x14, x15, x16, x17 and 2 more",
        ),
        (
            Compatibility { agent_abi: 5, ..kvm() },
            host.clone(),
            "the snapshot's agent has interface version 5, this host speaks 6 to 7",
        ),
    ] {
        assert_eq!(snapshot.conflict_with(&host).as_deref(), Some(expected));
    }
}

#[test]
fn a_restored_machines_class_has_the_kernel_and_agent_of_its_snapshot() {
    let host = kvm();
    let snapshot = Compatibility {
        guest: "older".into(),
        agent_abi: OLDEST_AGENT_ABI,
        vmm_version: "7.2.1".into(),
        cpu_features: features("AuthenticAMD", &["fpu"]),
        ..kvm()
    };
    let expected = Compatibility { guest: "older".into(), agent_abi: OLDEST_AGENT_ABI, ..host.clone() };
    assert_eq!(host.of_restored(&snapshot), expected);
}

fn class() -> impl Strategy<Value = Compatibility> {
    let versions = prop::sample::select(vec!["7.2.22 (Debian 1:7.2)", "7.2.1", "8.0.0", "8.0.5 (x)", "devel"]);
    let formats = prop::sample::select(vec![None, Some("6.0.0"), Some("6.1.0"), Some("7.0.0")]);
    let flags = prop::collection::btree_set(prop::sample::select(vec!["a", "b", "c", "d"]), 0..4);
    let cpu = prop::option::weighted(0.8, (prop::sample::select(vec!["AuthenticAMD", "GenuineIntel"]), flags));
    (any::<[bool; 3]>(), versions, formats, cpu, "[ab]", "[xy]", 4..9u32).prop_map(
        |([qemu, emulated, old_format], version, vmm_format, cpu, guest, model, agent_abi)| Compatibility {
            vmm: if qemu { VmmKind::Qemu } else { VmmKind::Firecracker },
            vmm_version: version.into(),
            accelerator: if emulated { "tcg" } else { "kvm" }.into(),
            format: if old_format { 1 } else { 2 },
            guest,
            cpu: model,
            agent_abi,
            vmm_format: vmm_format.filter(|_| !qemu).map(str::to_owned),
            cpu_features: cpu.filter(|_| !emulated).map(|(vendor, flags)| CpuFeatures {
                vendor: vendor.into(),
                flags: flags.into_iter().map(str::to_owned).collect(),
            }),
        },
    )
}

fn spoken() -> impl Strategy<Value = Compatibility> {
    (class(), OLDEST_AGENT_ABI..=AGENT_ABI).prop_map(|(class, agent_abi)| Compatibility { agent_abi, ..class })
}

/// A host that differs from the class in one or two properties, so that most pairs fit or nearly fit.
fn near(class: Compatibility) -> impl Strategy<Value = Compatibility> {
    (Just(class), self::class(), any::<[bool; 6]>()).prop_map(|(class, other, take)| {
        let mut near = class.clone();
        let [version, format, cpu, guest, agent, model] = take;
        if version {
            near.vmm_version = other.vmm_version;
        }
        if format && near.vmm_format.is_some() {
            near.vmm_format = other.vmm_format.or(near.vmm_format);
        }
        if cpu && near.cpu_features.is_some() {
            near.cpu_features = other.cpu_features.or(near.cpu_features);
        }
        if guest {
            near.guest = other.guest;
        }
        if agent {
            near.agent_abi = other.agent_abi;
        }
        if model {
            near.cpu = other.cpu;
        }
        near
    })
}

fn pair() -> impl Strategy<Value = (Compatibility, Compatibility)> {
    prop_oneof![(spoken(), spoken()), spoken().prop_flat_map(|class| (Just(class.clone()), near(class)))]
}

/// Three classes, each near the one before; all tell their features and formats, or none does.
fn chain() -> impl Strategy<Value = (Compatibility, Compatibility, Compatibility)> {
    let two = spoken().prop_flat_map(|a| (Just(a.clone()), near(a)));
    two.prop_flat_map(|(a, b)| (Just(a), Just(b.clone()), near(b)))
}

fn fits(snapshot: &Compatibility, host: &Compatibility) -> bool {
    snapshot.conflict_with(host).is_none()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A host runs its own snapshots, whatever it is.
    #[test]
    fn a_host_runs_its_own_snapshots(host in spoken()) {
        prop_assert_eq!(host.conflict_with(&host), None);
    }

    /// Kernel, initramfs and the host's own agent never decide.
    #[test]
    fn what_is_only_recorded_never_decides((snapshot, host) in pair(), guest in "[a-z]{4}", abi in 0..20u32) {
        let other = Compatibility { guest, agent_abi: abi, ..host.clone() };
        prop_assert_eq!(snapshot.conflict_with(&host), snapshot.conflict_with(&other));
    }

    /// The text behind a version's first two numbers never decides.
    #[test]
    fn a_packages_suffix_never_decides((snapshot, host) in pair(), suffix in r"(\.[0-9]{1,2})?( \([ -~]{0,20}\))?") {
        let short = |class: &Compatibility| {
            let numbers: Vec<&str> = class.vmm_version.split('.').take(2).collect();
            numbers.join(".")
        };
        prop_assume!(host.vmm_version.starts_with(|c: char| c.is_ascii_digit()));
        let other = Compatibility { vmm_version: format!("{}{suffix}", short(&host)), ..host.clone() };
        prop_assert_eq!(fits(&snapshot, &host), fits(&snapshot, &other));
    }

    /// Features are a subset: more on the host never hurts, and each that the guest saw is needed.
    #[test]
    fn features_are_a_subset((snapshot, host) in pair(), more in prop::collection::btree_set("[e-h]", 0..4)) {
        if fits(&snapshot, &host)
            && let (Some(seen), Some(there)) = (&snapshot.cpu_features, &host.cpu_features)
        {
            prop_assert!(seen.flags.is_subset(&there.flags));
            let mut richer = there.clone();
            richer.flags.extend(more);
            let richer = Compatibility { cpu_features: Some(richer), ..host.clone() };
            prop_assert!(fits(&snapshot, &richer));
            for flag in &seen.flags {
                let mut poorer = there.clone();
                poorer.flags.remove(flag);
                let conflict = snapshot.conflict_with(&Compatibility { cpu_features: Some(poorer), ..host.clone() });
                let named = format!("lacks: {flag}");
                prop_assert!(conflict.is_some_and(|conflict| conflict.ends_with(&named)));
            }
        }
    }

    /// Two hosts that differ in nothing that is ordered (features, Firecracker's format) judge each other alike.
    #[test]
    fn what_is_not_ordered_is_symmetric((a, b) in pair()) {
        let b = Compatibility {
            vmm_format: a.vmm_format.clone(),
            agent_abi: a.agent_abi,
            cpu_features: match (&a.cpu_features, &b.cpu_features) {
                (Some(ours), Some(theirs)) => Some(CpuFeatures { flags: ours.flags.clone(), ..theirs.clone() }),
                _ => b.cpu_features.clone(),
            },
            ..b
        };
        prop_assert_eq!(fits(&a, &b), fits(&b, &a));
    }

    /// What runs on both sides of a step up runs over the step: an upgrade of an upgrade strands nothing.
    #[test]
    fn steps_up_add_up((a, b, c) in chain()) {
        if fits(&a, &b) && fits(&b, &c) {
            prop_assert!(fits(&a, &c));
        }
    }

    /// A snapshot that fits both ways was made by a host with the same features and the same format.
    #[test]
    fn both_ways_means_equal((a, b) in pair()) {
        if fits(&a, &b) && fits(&b, &a)
            && let (Some(ours), Some(theirs)) = (&a.cpu_features, &b.cpu_features)
        {
            prop_assert_eq!(&ours.flags, &theirs.flags);
            prop_assert_eq!(&ours.vendor, &theirs.vendor);
        }
    }

    /// An agent outside the range is refused whatever else fits, and one inside never is the reason.
    #[test]
    fn the_agents_version_is_a_range(class in class()) {
        let conflict = class.conflict_with(&class);
        let spoken = (OLDEST_AGENT_ABI..=AGENT_ABI).contains(&class.agent_abi);
        prop_assert_eq!(conflict.is_none(), spoken);
    }

    /// A class is read back as it was stored.
    #[test]
    fn classes_are_stored_whole(class in class()) {
        let stored = serde_json::to_value(&class).unwrap();
        prop_assert_eq!(serde_json::from_value::<Compatibility>(stored).unwrap(), class);
    }
}

/// The strategies make pairs of every kind; else the properties above would say little.
#[test]
fn the_pairs_that_are_judged_fit_now_and_then_and_are_refused_for_every_reason() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reasons = BTreeSet::new();
    let (mut fitting, mut steps) = (0, 0);
    for _ in 0..4_000 {
        let (a, b, c) = chain().new_tree(&mut runner).unwrap().current();
        steps += u32::from(fits(&a, &b) && fits(&b, &c) && a.cpu_features != c.cpu_features);
        let (snapshot, host) = pair().new_tree(&mut runner).unwrap().current();
        match snapshot.conflict_with(&host) {
            None => fitting += 1,
            Some(conflict) => {
                let cut = conflict.find(" is ").or_else(|| conflict.find(':')).unwrap_or(conflict.len());
                reasons.insert(conflict[..cut].to_owned());
            }
        }
    }
    assert!(fitting > 400 && steps > 10, "{fitting} {steps}");
    assert_eq!(reasons.len(), 8, "{reasons:?}");
}
