//! Builds by the BuildKit of a real Docker Engine, and by the same one as if it were buildkitd.
//!
//! ```text
//!   test ── docker://  ──────────────────────────────> dockerd of Debian (scripts/dockerd.sh)
//!        ── unix://, tcp:// with mutual TLS ── relay ──> its /grpc
//! ```
//! No registry of packages has buildkitd, so a relay stands in for its sockets: what it speaks is what `/grpc` speaks. Needs
//! root and `scripts/fetch-docker.sh`.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../../../nullspace/tests/e2e/fixture/dir.rs"]
mod dir;
#[allow(dead_code)]
#[path = "../../../nullspace/tests/e2e/fixture/docker.rs"]
mod docker;
#[allow(dead_code)]
#[path = "../../../nullspace/tests/e2e/fixture/host.rs"]
mod host;
mod relay;
mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use nullspace_buildkit::{Archive, BuildKit, Cause, Endpoint, Error, Event, Output, Source};
use tokio_util::sync::CancellationToken;

use docker::Docker;
use support::{Fixture, kit, with};

#[tokio::test]
async fn a_dockerfile_becomes_an_archive_and_its_image_goes_from_the_engine() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let about = kit.about().await.unwrap();
    assert!(about.version.starts_with("Docker Engine 20.10") && about.platforms.contains(&"linux/amd64".to_owned()));
    let mut fixture = Fixture::new(
        "FROM scratch AS tools\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"mkdir\", \"/made\"]\n\
         FROM scratch\nARG WHAT=nothing\nENV WHAT=$WHAT\nCOPY --from=tools /made /made\nCOPY . /ctx\n",
    );
    fixture.job.args.insert("WHAT".to_owned(), "something".to_owned());
    fixture.file(".dockerignore", "*.log\n!keep.log\nold\n");
    for name in ["a.log", "keep.log", "old/x", "src/main.c"] {
        fixture.file(name, name);
    }
    let (archive, events) = fixture.build(&kit).await;
    assert_eq!(archive.unwrap(), Archive::Docker);
    let config = fixture.config();
    assert!(config["config"]["Env"].to_string().contains("WHAT=something"), "{config}");
    let names = fixture.layer_names();
    for (name, there) in
        [("made", true), ("ctx/keep.log", true), ("ctx/src/main.c", true), ("ctx/a.log", false), ("ctx/old/x", false)]
    {
        assert_eq!(names.iter().any(|found| found.trim_end_matches('/') == name), there, "{name} in {names:?}");
    }
    let ran = |event: &Event| matches!(event, Event::Done(step, _) if step.what.starts_with("RUN") && step.stage.as_deref() == Some("tools"));
    assert!(events.iter().any(ran), "{events:?}");
    // The second time nothing runs.
    let (archive, events) = fixture.again().build(&kit).await;
    archive.unwrap();
    let cached = |event: &Event| matches!(event, Event::Cached(step) if step.what.starts_with("RUN"));
    assert!(events.iter().any(cached), "{events:?}");
    assert_eq!(String::from_utf8_lossy(&docker.output(&["image", "ls", "--all", "--quiet"])), "");
}

#[tokio::test]
async fn secrets_reach_the_steps_that_ask_and_missing_ones_are_named() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let text = "FROM scratch\nCOPY busybox /bin/busybox\n\
        RUN --mount=type=secret,id=token,required=true [\"/bin/busybox\", \"sha256sum\", \"/run/secrets/token\"]\n\
        RUN --mount=type=secret,id=other [\"/bin/busybox\", \"ls\", \"/run/secrets\"]\n";
    let mut fixture = Fixture::new(text);
    let (failed, _) = fixture.build(&kit).await;
    let Err(Error::Failed(failure)) = failed else { panic!("{failed:?}") };
    assert_eq!(failure.cause, Cause::MissingSecret("token".to_owned()), "{failure}");
    let mut fixture = with(text, |job| {
        job.secrets.insert("token".to_owned(), "canary-secret".to_owned().into());
    });
    let (built, events) = fixture.build(&kit).await;
    built.unwrap();
    let sum = |event: &Event| matches!(event, Event::Output { line, .. } if line.ends_with("  /run/secrets/token"));
    assert!(events.iter().any(sum), "{events:?}");
    let grep =
        std::process::Command::new("grep").args(["-rlaF", "-e", "canary-secret"]).arg(docker.data()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    assert!(!format!("{:?}", fixture.job).contains("canary"));
}

#[tokio::test]
async fn failures_are_told_apart() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let busybox = "FROM scratch\nCOPY busybox /bin/busybox\n";
    for (text, expected) in [
        (format!("{busybox}RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo why >&2; exit 3\"]\n"), Cause::Exit(3)),
        ("FROM scratch\nRUM x\n".to_owned(), Cause::Syntax { line: Some(2) }),
        ("FROM scratch\nCOPY nothing /x\n".to_owned(), Cause::MissingFile),
        ("FROM 127.0.0.1:1/none:1\n".to_owned(), Cause::RegistryUnavailable),
        ("FROM scratch\nENV A=b\n".to_owned(), Cause::NoLayers),
    ] {
        let (failed, events) = Fixture::new(&text).build(&kit).await;
        let Err(Error::Failed(failure)) = failed else { panic!("{text}: {failed:?}") };
        assert_eq!(failure.cause, expected, "{text}: {failure}");
        if expected == Cause::Exit(3) {
            let step = failure.step.unwrap();
            assert!(step.what.starts_with("RUN") && step.index == Some(2) && step.total == Some(2), "{step:?}");
            let said = |event: &Event| matches!(event, Event::Output { line, stderr: true, .. } if line == "why");
            assert!(events.iter().any(said), "{events:?}");
        }
    }
    // The engine is there after it has refused an export.
    Fixture::new("FROM scratch\nCOPY busybox /bin/busybox\n").build(&kit).await.0.unwrap();
    let nowhere = BuildKit::new(Endpoint::Docker("/nonexistent/docker.sock".into()), None);
    assert!(matches!(nowhere.about().await, Err(Error::Unavailable { .. })));
    let (failed, _) = Fixture::new("FROM scratch\n").build(&nowhere).await;
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
}

#[tokio::test]
async fn a_cancelled_build_returns_when_its_step_is_gone() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    cancelled_at_its_step(&kit, &docker).await;
}

async fn cancelled_at_its_step(kit: &BuildKit, docker: &Docker) {
    let text = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"1000\"]\n";
    let fixture = with(text, |job| {
        // What either has an exporter for.
        if !matches!(kit.endpoint(), Endpoint::Docker(_)) {
            job.output = Output::Files;
        }
    });
    let cancel = CancellationToken::new();
    let (events, mut seen) = tokio::sync::mpsc::channel(64);
    let building = kit.build(std::sync::Arc::clone(&fixture.job_ref()), events, &cancel);
    let watching = async {
        while let Some(event) = seen.recv().await {
            if matches!(&event, Event::Started(step) if step.what.starts_with("RUN")) {
                while docker.steps().is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                cancel.cancel();
            }
        }
    };
    let began = Instant::now();
    let (built, ()) = tokio::join!(building, watching);
    assert!(matches!(built, Err(Error::Cancelled)), "{built:?}");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(docker.steps(), std::collections::BTreeSet::new());
}

#[tokio::test]
async fn a_buildkit_that_goes_away_is_no_failure_of_the_build() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let fixture =
        Fixture::new("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sleep\", \"1000\"]\n");
    let cancel = CancellationToken::new();
    let (events, mut seen) = tokio::sync::mpsc::channel(64);
    let building = tokio::spawn({
        let job = fixture.job_ref();
        async move { kit.build(job, events, &cancel).await }
    });
    while let Some(event) = seen.recv().await {
        if matches!(&event, Event::Started(step) if step.what.starts_with("RUN")) {
            break;
        }
    }
    drop(docker);
    let built = building.await.unwrap();
    assert!(matches!(built, Err(Error::Unavailable { .. })), "{built:?}");
}

#[tokio::test]
async fn without_a_network_steps_reach_nobody() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let text = format!(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox nc -w 3 $(/bin/busybox \
         ip route | /bin/busybox awk '/default/ {{print $3}}') {port} </dev/null\"]\n"
    );
    Fixture::new(&text).build(&kit).await.0.unwrap();
    let (failed, _) = with(&text, |job| {
        job.network = false;
        job.no_cache = true;
    })
    .build(&kit)
    .await;
    assert!(matches!(&failed, Err(Error::Failed(failure)) if failure.cause == Cause::Exit(1)), "{failed:?}");
}

#[tokio::test]
async fn twenty_thousand_files_of_five_hundred_megabytes_are_sent_in_bounded_memory() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    let mut fixture = Fixture::new("FROM scratch\nCOPY . /ctx\n");
    let bytes: u64 = 25 << 10;
    let path = fixture.dir().join("blob");
    std::fs::write(&path, vec![b'x'; usize::try_from(bytes).unwrap()]).unwrap();
    for index in 0..20_000 {
        let name = format!("d{}/f{index}", index % 100);
        fixture.tree().file(&name, None, Source::File { path: path.clone(), bytes }).unwrap();
    }
    let before = support::peak_memory();
    let began = Instant::now();
    let (built, _) = fixture.build(&kit).await;
    built.unwrap();
    let grown = support::peak_memory() - before;
    println!("{} s, {} MiB more memory", began.elapsed().as_secs(), grown >> 20);
    assert!(grown < 128 << 20, "{} MiB", grown >> 20);
    let names = fixture.layer_names();
    assert_eq!(names.iter().filter(|name| name.contains("/f")).count(), 20_000);
}

#[tokio::test]
async fn a_context_that_differs_in_bytes_alone_is_another() {
    let docker = Docker::start(&[]);
    let kit = kit(&docker);
    for content in ["one", "two"] {
        let mut fixture = Fixture::new("FROM scratch\nCOPY x /x\n");
        fixture.tree().file("x", None, Source::Memory(Bytes::from_static(content.as_bytes()))).unwrap();
        fixture.build(&kit).await.0.unwrap();
        assert_eq!(fixture.file_in_layers("x"), content.as_bytes());
    }
}

#[tokio::test]
async fn buildkitds_own_endpoints_speak_over_sockets_and_mutual_tls() {
    let docker = Docker::start(&[]);
    let dir = dir::TestDir::new();
    let certificates = relay::Certificates::make(dir.path());
    let plain = relay::unix(&docker.socket(), dir.path()).await;
    let tls = relay::tls(&docker.socket(), &certificates).await;
    let client = nullspace_buildkit::Tls::read(&certificates.authority, &certificates.client.0, &certificates.client.1);
    for kit in [
        BuildKit::new(Endpoint::Unix(plain), None),
        BuildKit::new(Endpoint::Tcp { host: "localhost".to_owned(), port: tls }, Some(client.unwrap())),
    ] {
        let about = kit.about().await.unwrap();
        assert!(about.platforms.contains(&"linux/amd64".to_owned()), "{about:?}");
        let text = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY dir /dir\n\
            RUN --mount=type=secret,id=s,required=true [\"/bin/busybox\", \"cp\", \"/run/secrets/s\", \"/copied\"]\n";
        let job = |job: &mut nullspace_buildkit::Job| {
            job.secrets.insert("s".to_owned(), "from the vault".to_owned().into());
            job.no_cache = true;
        };
        let mut fixture = with(text, job);
        fixture.file("dir/file", "x");
        // The engine's BuildKit has no exporter of images; the one for files goes the same way.
        fixture.job.output = Output::Files;
        let (built, events) = fixture.build(&kit).await;
        assert_eq!(built.unwrap(), Archive::Files);
        assert_eq!(support::tar(&fixture.job.archive, &["-xOf", "copied"]), b"from the vault");
        assert_eq!(support::tar(&fixture.job.archive, &["-xOf", "dir/file"]), b"x");
        assert!(events.iter().any(|event| matches!(event, Event::Done(step, _) if step.what.starts_with("RUN"))));
        // buildkitd has no images that could be saved instead.
        let (failed, _) = with(text, job).build(&kit).await;
        let Err(Error::Failed(failure)) = failed else { panic!("{failed:?}") };
        assert!(failure.message.contains("could not be found"), "{failure}");
        cancelled_at_its_step(&kit, &docker).await;
    }
    // Without our certificate nobody answers.
    let stranger = relay::Certificates::make(&dir.path().join("stranger"));
    let tls_of = |authority, certificate: &(std::path::PathBuf, std::path::PathBuf)| {
        nullspace_buildkit::Tls::read(authority, &certificate.0, &certificate.1).unwrap()
    };
    for wrong in [tls_of(&certificates.authority, &stranger.client), tls_of(&stranger.authority, &certificates.client)]
    {
        let kit = BuildKit::new(Endpoint::Tcp { host: "localhost".to_owned(), port: tls }, Some(wrong));
        assert!(matches!(kit.about().await, Err(Error::Unavailable { .. })));
    }
}
