//! What `doctor` says and `auto` chooses: on this host as it is, whether its KVM runs guests (as in the nested host that
//! `tests/nested` starts), only opens, or is absent; and on one whose KVM is hidden.

use std::path::Path;

use crate::fixture::Service;

/// Runs its arguments where everything but `/dev/kvm` is as on this host. `$1` is an empty folder.
const WITHOUT_KVM: &str = r#"
mount --make-rprivate /
mount -t tmpfs -o mode=755 dev "$1"
for entry in /dev/*; do
  name=${entry##*/}
  case $name in kvm) continue ;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$1/$name"
  elif [ -d "$entry" ]; then mkdir "$1/$name"; mount --rbind "$entry" "$1/$name"
  else : >"$1/$name"; mount --bind "$entry" "$1/$name"
  fi
done
mount --rbind "$1" /dev
shift
exec "$@"
"#;

/// What doctor said of one need.
#[derive(Debug)]
struct Finding {
    works: bool,
    line: String,
}

/// The settings under which the service has the choice; Firecracker where `scripts/fetch-firecracker.sh` or the
/// environment provides it.
fn choice() -> [(&'static str, String); 4] {
    let program = |variable: &str, name: &str| {
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firecracker").join(name);
        std::env::var(variable).unwrap_or_else(|_| fetched.display().to_string())
    };
    [
        ("NULLSPACE_VMM", "auto".into()),
        ("NULLSPACE_ACCEL", "auto".into()),
        ("NULLSPACE_FIRECRACKER", program("NULLSPACE_FIRECRACKER", "firecracker")),
        ("NULLSPACE_JAILER", program("NULLSPACE_JAILER", "jailer")),
    ]
}

fn finding(doctor: &str, need: &str) -> Finding {
    let found = doctor.lines().find_map(|line| {
        let (mark, rest) = line.split_once("  ")?;
        rest.trim_start().starts_with(need).then(|| Finding { works: mark == "works", line: line.to_owned() })
    });
    found.unwrap_or_else(|| panic!("{need} is not judged:\n{doctor}"))
}

/// Asks doctor, starts the service, and compares.
async fn doctor_and_service_agree(mut service: Service) -> String {
    let doctor = service.command(&["doctor"]).output().expect("run nullspace doctor");
    let doctor = String::from_utf8(doctor.stdout).expect("doctor prints UTF-8");
    let firecracker = finding(&doctor, "Firecracker");
    let qemu = finding(&doctor, "QEMU");
    if !qemu.works && !firecracker.works {
        assert!(doctor.contains("FAILS"), "{doctor}");
        return doctor;
    }
    assert!(doctor.contains("the service can run here"), "{doctor}");
    let kvm = qemu.works && finding(&doctor, "KVM").works;
    let expected = match (firecracker.works, kvm) {
        (true, _) => ["vmm=Firecracker", "accelerator=\"kvm\""],
        (false, true) => ["vmm=Qemu", "accelerator=\"kvm\""],
        (false, false) => ["vmm=Qemu", "accelerator=\"tcg\""],
    };
    service.restart().await;
    let lines = service.log().lines();
    let chosen = lines.iter().find(|line| line.contains("machines run under")).expect("the choice is in the log");
    assert!(expected.iter().all(|what| chosen.contains(what)), "{chosen}\n{doctor}");
    // Without that, the reason is there for the operator to read.
    let reason = lines.iter().any(|line| line.contains("Firecracker is installed but does not work"));
    assert_eq!(reason, !firecracker.works && !firecracker.line.contains("not in PATH"), "{lines:#?}");
    service.stop().await;
    doctor
}

#[tokio::test]
async fn auto_takes_what_doctor_saw_a_guest_boot_in() {
    let doctor = doctor_and_service_agree(Service::through(&["env"], choice())).await;
    // Who runs the tests on a host that he knows can say what must come out.
    if let Some(expected) = std::env::var_os("NULLSPACE_TEST_EXPECT_FIRECRACKER") {
        assert_eq!(finding(&doctor, "Firecracker").works, expected == "works", "{doctor}");
    }
}

#[tokio::test]
async fn without_kvm_machines_run_in_software_and_doctor_says_why() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: to hide /dev/kvm needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let top = folder.path().to_str().expect("a path in UTF-8");
    let wrapper = ["unshare", "--mount", "sh", "-ec", WITHOUT_KVM, "sh", top];
    let doctor = doctor_and_service_agree(Service::through(&wrapper, choice())).await;
    assert!(!finding(&doctor, "Firecracker").works, "{doctor}");
    if finding(&doctor, "QEMU").works {
        let kvm = finding(&doctor, "KVM");
        assert!(!kvm.works && kvm.line.contains("there is no /dev/kvm"), "{doctor}");
    }
}
