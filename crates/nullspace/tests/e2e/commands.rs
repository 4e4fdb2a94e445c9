//! The command line, as the README shows it.

use std::process::Output;

use crate::fixture::{Image, Registry, Service};

/// What a command printed, by stream.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("commands print UTF-8");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

fn run(service: &Service, key: &str, arguments: &[&str]) -> Ran {
    let mut command = service.command(arguments);
    command.env("NULLSPACE_API_URL", service.url()).env("NULLSPACE_API_KEY", key);
    command.output().expect("run nullspace").into()
}

fn succeeds(service: &Service, key: &str, arguments: &[&str]) -> String {
    let ran = run(service, key, arguments);
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    ran.stdout
}

#[tokio::test]
async fn a_template_is_built_used_and_deleted_from_the_command_line() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let key = service.key("first");
    let image = registry.reference("box:1");

    let start_cmd = "echo serving $COLOUR; exec httpd -f -p 8080 -h /www";
    let built = succeeds(
        &service,
        &key,
        &[
            "template",
            "build",
            "--name",
            "web",
            "--from",
            &image,
            "--memory-mib",
            "192",
            "--env",
            "COLOUR=green",
            "--ready",
            "tcp:8080",
            "--start-cmd",
            start_cmd,
            "--tag",
            "default",
            "--tag",
            "v1",
        ],
    );
    for line in ["Resolving", "Imported", "Machine booted", "serving green", "Ready after", "is ready after"] {
        assert!(built.contains(line), "the log lacks {line:?}: {built}");
    }
    assert_eq!(succeeds(&service, &key, &["template", "list"]).lines().filter(|line| line.contains("web")).count(), 1);
    assert!(succeeds(&service, &key, &["template", "wait", "web:v1"]).contains("is there"));

    let created = succeeds(&service, &key, &["sandbox", "create", "web", "--env", "MINE=1"]);
    let sandbox = created.trim();
    assert!(sandbox.starts_with("sb_") && !sandbox.contains('\n'), "one id and nothing else: {created:?}");
    let script = "wget -q -O - http://127.0.0.1:8080/; echo $COLOUR $MINE; echo oops >&2; exit 7";
    let ran = run(&service, &key, &["sandbox", "exec", sandbox, "--", "sh", "-c", script]);
    assert_eq!((ran.code, &*ran.stdout, &*ran.stderr), (Some(7), "hello from the template\ngreen 1\n", "oops\n"));
    assert!(succeeds(&service, &key, &["sandbox", "processes", sandbox]).contains("httpd"));
    assert!(succeeds(&service, &key, &["sandbox", "list"]).contains(sandbox));
    succeeds(&service, &key, &["sandbox", "delete", sandbox]);
    assert!(!succeeds(&service, &key, &["sandbox", "list"]).contains(sandbox));

    // A build that fails says why and what to do; its log can be read again.
    let failed =
        run(&service, &key, &["template", "build", "--from", &image, "--memory-mib", "192", "--start-cmd", "exit 41"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("exited with code 41") && failed.stderr.contains("hint: "), "{failed:?}");

    succeeds(&service, &key, &["template", "delete", "web"]);
    let gone = run(&service, &key, &["template", "delete", "web"]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains("there is no template web"), "{gone:?}");
    let refused = run(&service, "ns_live_wrong", &["template", "list"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("API key"), "{refused:?}");
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn what_a_host_lacks_is_said_with_its_cure() {
    let mut service = Service::start().await;
    // A data folder that is not there is said, and not made.
    let typo = service.data().join("typo");
    let commands: [&[&str]; 6] = [
        &["keys", "list"],
        &["keys", "revoke", "key_00000000000000000000000000000000"],
        &["store", "stats"],
        &["store", "gc"],
        &["store", "verify"],
        &["doctor"],
    ];
    for arguments in commands {
        let folder = typo.to_str().unwrap();
        let ran: Ran = service.command(&[arguments, &["--data-dir", folder]].concat()).output().unwrap().into();
        let said = if arguments == ["doctor"] { &ran.stdout } else { &ran.stderr };
        assert!(
            ran.code == Some(i32::from(arguments != ["doctor"])) && said.contains(folder),
            "{arguments:?}: {ran:?}"
        );
        assert!(!typo.exists(), "{arguments:?} made a data folder");
    }
    let mut misspelt = service.command(&["keys", "list"]);
    misspelt.env("NULLSPACE_LITSEN", "127.0.0.1:1").env("NULLSPACE_SERVICE_HOST", "10.0.0.1");
    let ran: Ran = misspelt.output().unwrap().into();
    assert!(ran.code == Some(1) && ran.stderr.contains("is NULLSPACE_LISTEN meant"), "{ran:?}");
    let doctor: Ran = service.command(&["doctor"]).output().unwrap().into();
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    for need in ["data folder", "guest", "QEMU", "Firecracker", "BuildKit"] {
        assert!(doctor.stdout.to_lowercase().contains(&need.to_lowercase()), "{need} is not judged: {}", doctor.stdout);
    }
    let mut without = service.command(&["doctor"]);
    without.env("NULLSPACE_GUEST_DIR", service.data().join("nowhere"));
    let doctor: Ran = without.output().unwrap().into();
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.stdout.contains("make guest"), "{doctor:?}");

    // One service at a time on one data folder; the first does not notice.
    let second: Ran = service.command(&["serve", "--listen", "127.0.0.1:0"]).output().unwrap().into();
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains(&service.data().display().to_string()), "{second:?}");
    let health = service.api();
    assert_eq!(health.get("/v1/templates").await.status, 200);

    // A setting that does not exist is an error, not a guess.
    let config = service.data().with_file_name("config.toml");
    std::fs::write(&config, "listne = '127.0.0.1:1'\n").unwrap();
    let mut misspelt = service.command(&["serve", "--config"]);
    let misspelt: Ran = misspelt.arg(&config).output().unwrap().into();
    assert!(misspelt.code == Some(1) && misspelt.stderr.contains("listne"), "{misspelt:?}");
    service.stop().await;
}
