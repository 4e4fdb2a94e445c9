//! A machine under QEMU's software emulation, and the client of its agent. 10.0.2.100:7 echoes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use nullspace_guest::host::{Agent, ExecOutput};
use nullspace_guest::message::{AgentInfo, Exec, Restored};

pub(crate) const BOOT: Duration = Duration::from_secs(180);
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A guest that ends with the test.
pub(crate) struct Machine {
    pub(crate) process: Child,
    folder: PathBuf,
    qmp: BufReader<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn guest_file(name: &str) -> PathBuf {
    let folder = std::env::var_os("NULLSPACE_GUEST_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing; run `make guest`", path.display());
    path
}

/// The kernel's TSC calibration hangs now and then under emulation; it is told the rate instead.
fn tsc_hints() -> String {
    // SAFETY: every x86-64 processor has it.
    let now = || unsafe { core::arch::x86_64::_rdtsc() };
    let (began, ticks) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(50));
    let khz = u128::from(now() - ticks) / began.elapsed().as_micros() * 1000;
    format!("tsc_early_khz={khz} lpj={}", khz * 2)
}

impl Machine {
    /// Starts QEMU in `folder` over its `disk` and `memory`; waits with loading for `state` when there is one.
    pub(crate) fn start(folder: &Path, memory: &Path, restore: bool) -> Machine {
        let at = |name: &str| folder.join(name).display().to_string();
        let share = if restore { "off" } else { "on" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on,memory-backend=mem"])
            .args(["-accel", "tcg", "-cpu", "max,-la57,-erms", "-smp", "1", "-m", "256"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=mem,size=256M,mem-path={},share={share}", memory.display()))
            .arg("-kernel")
            .arg(guest_file("vmlinuz"))
            .arg("-initrd")
            .arg(guest_file("initramfs.cpio"))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 reboot=t mitigations=off {}", tsc_hints()))
            .args(["-serial".to_owned(), format!("file:{}", at("console"))])
            .args(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(["-drive".to_owned(), format!("if=none,id=root,file={},format=raw", at("disk"))])
            .args(["-device", "virtio-blk-device,drive=root", "-device", "virtio-serial-device"])
            .args(["-chardev".to_owned(), format!("socket,id=agent,path={},server=on,wait=off", at("agent"))])
            .args(["-device", "virtserialport,chardev=agent,name=nullspace.agent"])
            .args([
                "-netdev",
                "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:7-cmd:cat",
                "-device",
                "virtio-net-device,netdev=net",
            ])
            .args(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"])
            .stdin(Stdio::null());
        if restore {
            command.args(["-incoming", "defer"]);
        }
        let process = command.spawn().expect("qemu-system-x86_64 starts");
        let until = Instant::now() + SOON;
        let stream = loop {
            match UnixStream::connect(folder.join("qmp")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "QEMU's control socket: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut machine = Machine { process, folder: folder.to_owned(), qmp: BufReader::new(stream) };
        machine.ask("qmp_capabilities", serde_json::json!({}));
        machine
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let line = serde_json::json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.qmp.read_line(&mut line).unwrap();
            let mut answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {line}");
            if let Some(value) = answer.get_mut("return") {
                return value.take();
            }
        }
    }

    pub(crate) fn migrate(&mut self, command: &str, uri: &str) {
        let capability = serde_json::json!([{ "capability": "x-ignore-shared", "state": true }]);
        self.ask("migrate-set-capabilities", serde_json::json!({ "capabilities": capability }));
        self.ask(command, serde_json::json!({ "uri": uri }));
        let until = Instant::now() + SOON;
        while self.ask("query-migrate", serde_json::json!({}))["status"] != "completed" {
            assert!(Instant::now() < until, "{command} does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) async fn stream(&self) -> tokio::net::UnixStream {
        tokio::net::UnixStream::connect(self.folder.join("agent")).await.unwrap()
    }

    pub(crate) async fn connect(&self) -> (Agent, AgentInfo) {
        match Agent::connect(self.stream().await, BOOT).await {
            Ok(connected) => connected,
            Err(error) => {
                panic!("{error}; console:\n{}", fs::read_to_string(self.folder.join("console")).unwrap_or_default())
            }
        }
    }
}

/// An ext4 image of `mib` MiB with a tree that `fill` makes.
pub(crate) fn disk(folder: &Path, mib: u64, fill: impl FnOnce(&Path)) {
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(folder.join("disk"))
        .arg(format!("{mib}M"))
        .status();
    assert!(made.expect("mke2fs is there (package e2fsprogs)").success());
}

pub(crate) fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    found.expect("busybox is there (package busybox-static)")
}

pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|&arg| arg.to_owned()).collect(), ..Exec::default() }
}

pub(crate) fn sh(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

pub(crate) async fn run(agent: &Agent, exec: Exec) -> ExecOutput {
    agent.exec_collect(exec, 1 << 20).await.unwrap()
}

pub(crate) async fn shell(agent: &Agent, script: &str) -> String {
    let out = run(agent, sh(script)).await;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    assert_eq!(out.exit.code, 0, "{script}: {text} {}", String::from_utf8_lossy(&out.stderr));
    text
}

pub(crate) fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

pub(crate) fn restored(name: &str, seed: u8) -> Restored {
    Restored {
        hostname: name.into(),
        machine_id: format!("{seed:02x}").repeat(16),
        entropy: base64::engine::general_purpose::STANDARD.encode([seed; 64]),
        unix_time_ns: now_ns(),
        network: None,
        resume: None,
        trial: false,
    }
}
