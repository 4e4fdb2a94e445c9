//! What `doctor` says and `auto` chooses: on this host as it is, whether its KVM runs guests (as in the nested host that
//! `tests/nested` starts), only opens, or is absent; and on one whose KVM is hidden.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::fixture::Service;

/// The end of a service that is refused its start, on a busy host.
const START: Duration = Duration::from_secs(60);

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

/// A service on this host without its KVM, not started; `None` where that cannot be arranged. `folder` is empty.
fn without_kvm(folder: &Path) -> Option<Service> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: to hide /dev/kvm needs root");
        return None;
    }
    let top = folder.to_str().expect("a path in UTF-8");
    Some(Service::through(&["unshare", "--mount", "sh", "-ec", WITHOUT_KVM, "sh", top], choice()))
}

/// What the service says that does not start.
async fn refusal(service: &Service) -> String {
    let mut command = tokio::process::Command::from(service.command(&["serve", "--listen", "127.0.0.1:0"]));
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(START, ended).await.expect("the service ends").expect("run the service");
    let said = String::from_utf8(ended.stderr).expect("the log is UTF-8");
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(!said.contains("listening on") && !said.contains("panicked"), "{said}");
    said
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
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(service) = without_kvm(folder.path()) else { return };
    let doctor = doctor_and_service_agree(service).await;
    assert!(!finding(&doctor, "Firecracker").works, "{doctor}");
    if finding(&doctor, "QEMU").works {
        let kvm = finding(&doctor, "KVM");
        assert!(!kvm.works && kvm.line.contains("there is no /dev/kvm"), "{doctor}");
    }
}

#[tokio::test]
async fn settings_that_ask_for_kvm_are_refused_at_the_start_where_there_is_none() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(mut service) = without_kvm(folder.path()) else { return };
    let doctor = service.command(&["doctor"]).output().expect("run nullspace doctor");
    let doctor = String::from_utf8(doctor.stdout).expect("doctor prints UTF-8");
    if !finding(&doctor, "QEMU").works {
        // As in the nested host: nothing runs machines in software there, so the settings make no difference.
        assert!(doctor.contains("FAILS"), "{doctor}");
        refusal(&service).await;
        return;
    }
    // Under QEMU, and under Firecracker or QEMU, whichever works.
    for vmm in ["qemu", "auto"] {
        service.set("NULLSPACE_VMM", vmm);
        service.set("NULLSPACE_ACCEL", "kvm");
        let said = refusal(&service).await;
        let expected = "KVM is asked for and cannot run guests on this host: there is no /dev/kvm";
        assert!(said.contains(expected) && said.contains("accel = \"auto\""), "{vmm}: {said}");

        service.set("NULLSPACE_ACCEL", "auto");
        service.set("NULLSPACE_REQUIRE_KVM", "true");
        let said = refusal(&service).await;
        let expected = "require_kvm is set, and guests would run in software";
        assert!(said.contains(expected) && said.contains("nullspace doctor"), "{vmm}: {said}");
        service.unset("NULLSPACE_REQUIRE_KVM");
    }
    // Without them it starts there, and says what it does.
    service.restart().await;
    assert!(service.log().lines().iter().any(|line| line.contains("guests run in software emulation")));
    service.stop().await;
}
