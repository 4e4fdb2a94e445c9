//! Dockerfiles, built by the BuildKit of a real Docker Engine into templates and sandboxes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nullspace_api::{
    TemplateBuildBackend as Backend, TemplateBuildLogKind as Kind, TemplateBuildSourceType as SourceType,
    TemplateBuildStatus as Status, TemplateFailureDetailCode, TemplateFailurePhase as Phase,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture::{Docker, Image, Registry, Service, host, is_long, until};

/// A registry that stands in for Docker Hub with `box:1`, an engine that asks it, and a service that asks the engine.
async fn stack() -> (Registry, Docker, Service) {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let docker = Docker::start(&registry.as_hub());
    let service = Service::with([docker.setting()]).await;
    (registry, docker, service)
}

fn request(dockerfile: &str) -> Value {
    json!({"dockerfile": dockerfile, "build_config": {"memory_mib": 192}})
}

/// The request with files of a context.
fn with_files(dockerfile: &str, files: &[(&str, &str)]) -> Value {
    let mut request = request(dockerfile);
    let file = |(path, content): &(&str, &str)| json!({"path": path, "entry_type": "file", "content_base64": STANDARD.encode(content)});
    request["build_context"] = json!({"files": files.iter().map(file).collect::<Vec<_>>()});
    request
}

fn images(docker: &Docker) -> String {
    String::from_utf8(docker.output(&["image", "ls", "--all", "--quiet"])).unwrap()
}

#[tokio::test]
async fn a_dockerfile_becomes_a_running_template() {
    let (_registry, docker, mut service) = stack().await;
    let api = service.api();
    let text = r#"
ARG TAG=1
FROM box:${TAG} AS build
ARG WHO=nobody
ENV STAGE=build
RUN echo "$WHO $STAGE" >/made && mkdir /out && cp /made /out/
FROM box:1 AS unused
RUN exit 7
FROM box:1 AS final
ARG WHO
LABEL org.example.a="1" b=2
EXPOSE 8080/tcp 53/udp
VOLUME ["/data"]
ENV GREETING="hello there" STAGE=final
SHELL ["/bin/sh", "-e", "-c"]
COPY --from=build /out/made /made
COPY --chown=app:app --chmod=640 src/ /srv/src/
COPY *.txt /srv/
ADD files.tar /added/
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch --mount=type=bind,source=src,target=/bound     cat /bound/main.sh >/bound-copy; echo x >/cache/x; echo x >/scratch/x
RUN adduser -D -u 1234 web || echo "web:x:1234:1234::/home/web:/bin/sh" >>/etc/passwd
WORKDIR /srv
WORKDIR src
USER app
HEALTHCHECK --interval=1s --retries=20 CMD wget -q -O /dev/null http://127.0.0.1:8080/index.html
ENTRYPOINT ["httpd", "-f", "-p"]
CMD ["8080", "-h", "/www"]
FROM final AS after
RUN exit 8
"#;
    let tar = Command::new("tar").args(["-C", "/etc", "-cf", "-", "hostname"]).output().unwrap().stdout;
    let mut wanted = with_files(
        text,
        &[
            ("src/main.sh", "echo main\n"),
            ("src/skip.log", "no"),
            ("src/keep.log", "yes"),
            ("a.txt", "a"),
            ("b.txt", "b"),
            (".dockerignore", "**/*.log\n!src/keep.log\nb.txt\n"),
        ],
    );
    let blob = api.upload(&tar).await;
    wanted["build_context"]["files"]
        .as_array_mut()
        .unwrap()
        .push(json!({"path": "files.tar", "entry_type": "file", "blob_id": blob, "mode": "0600"}));
    wanted["build_target"] = json!("final");
    wanted["build_args"] = json!({"WHO": "me"});
    let built = api.ready(wanted.clone()).await;
    let build = &built.build;
    assert_eq!((build.build_backend, build.source_type), (Backend::Buildkit, SourceType::Dockerfile));
    assert!(build.dockerfile_digest.is_some() && build.context_digest.is_some() && build.source_digest.is_some());
    let defaults = build.runtime_defaults.as_ref().unwrap();
    assert_eq!(defaults.start_cmd.as_deref(), Some("httpd -f -p 8080 -h /www"));
    assert_eq!(
        (defaults.default_user.as_deref(), defaults.default_workdir.as_deref()),
        (Some("app"), Some("/srv/src"))
    );
    assert!(defaults.default_env_keys.contains(&"GREETING".to_owned()));
    let metadata = build.oci_metadata.as_ref().unwrap();
    assert_eq!(metadata.labels["org.example.a"], "1");
    assert_eq!((metadata.exposed_ports.len(), &*metadata.volumes), (2, &["/data".to_owned()][..]));
    assert!(metadata.healthcheck.as_ref().unwrap().mapped_readiness.is_some());
    // Steps as the log has them: the two stages that count, and no other.
    let ran = |name: &str| built.log.iter().any(|entry| entry.kind == Kind::Message && entry.message.contains(name));
    assert!(ran("[build 2/2] RUN echo") && ran("[final") && !ran("exit 7") && !ran("exit 8"), "{built:?}");
    let step = built.log.iter().find(|entry| entry.message.starts_with("[build 2/2] RUN")).unwrap();
    assert_eq!((step.step_index, step.total_steps, step.phase.as_deref()), (Some(2), Some(2), Some("build_step")));

    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("wget -q -O - http://127.0.0.1:8080/index.html").await, "hello from the template");
    assert_eq!(sandbox.sh("echo $(id -un) $(pwd) $GREETING $STAGE").await, "app /srv/src hello there final");
    assert_eq!(sandbox.sh("cat /made").await, "me build");
    assert_eq!(
        sandbox.sh("stat -c '%U:%G %a' /srv/src/main.sh; ls /srv/src /srv; cat /srv/a.txt").await,
        "app:app 640\n/srv:\na.txt\nsrc\n\n/srv/src:\nkeep.log\nmain.sh\na"
    );
    assert_eq!(sandbox.sh("cat /bound-copy; ls /cache /scratch /bound 2>&1 | grep -c x; true").await, "echo main\n0");
    assert_eq!(sandbox.sh_with("ls /added", json!({"user": "root"})).await, "hostname");

    // The second time nothing runs, and the root image is there.
    let again = api.ready(wanted.clone()).await;
    let summary = again.build.cache_summary.as_ref().unwrap();
    assert!(summary.layer_hits > 5 && summary.layer_misses == 0, "{summary:?} {again:?}");
    assert_eq!(again.build.source_digest, build.source_digest);

    // The same from a folder, by the command line: what is ignored is not sent.
    let folder = tempfile::tempdir().unwrap();
    let files = wanted["build_context"]["files"].as_array().unwrap();
    for file in files.iter().filter(|file| file["content_base64"].is_string()) {
        let path = folder.path().join(file["path"].as_str().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, STANDARD.decode(file["content_base64"].as_str().unwrap()).unwrap()).unwrap();
    }
    fs::write(folder.path().join("files.tar"), &tar).unwrap();
    fs::write(folder.path().join("Dockerfile"), text).unwrap();
    fs::write(folder.path().join("b.txt"), "ignored").unwrap();
    let mut command = service.command(&["template", "build", "--target", "final", "--build-arg", "WHO=me"]);
    command.args(["--memory-mib", "192", "--context"]).arg(folder.path());
    let ran = command.env("NULLSPACE_API_URL", service.url()).env("NULLSPACE_API_KEY", service.key("first")).output();
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("Cache hit: [build 2/2] RUN echo"), "{ran:?}");
    assert!(api.preflight(b"ignored", false).await.1, "an ignored file was sent");
    assert_eq!(images(&docker), "", "images that builds left on the engine");
    service.stop().await;
}

#[tokio::test]
async fn failures_say_which_step_and_why() {
    let (registry, docker, mut service) = stack().await;
    let api = service.api();
    let detail = api
        .failed(
            request("FROM box:1\nRUN true\nRUN echo some output; echo why >&2; exit 42\n"),
            "build_step_nonzero_exit",
        )
        .await;
    assert_eq!((detail.phase, detail.step_index, detail.retryable), (Phase::BuildStep, Some(3), false), "{detail:?}");
    let details = detail.details.as_ref().unwrap();
    assert_eq!(details["exit_code"], 42);
    assert!(details["last_output"].to_string().contains("why"), "{details:?}");

    // A fault that our own reading finds, and one that only BuildKit does.
    let refused = api.post("/v1/templates/builds", request("FROM box:1\nRUM x\n")).await;
    assert!(refused.refused(400, "invalid_request").error.contains("line 2"));
    let detail = api.failed(request("FROM box:1\nRUN true\nRUN --network=none true\n"), "dockerfile_invalid").await;
    assert_eq!(detail.phase, Phase::Preflight, "{detail:?}");
    assert_eq!(detail.details.as_ref().unwrap()["line"], 3);

    let detail = api.failed(with_files("FROM box:1\nCOPY nothing /x\n", &[("a", "a")]), "context_file_missing").await;
    assert_eq!(detail.phase, Phase::BuildStep, "{detail:?}");
    let missing = format!("FROM {}\n", registry.reference("library/box:none"));
    let detail = api.failed(request(&missing), "image_not_found").await;
    assert_eq!((detail.phase, detail.retryable), (Phase::Prepare, false), "{detail:?}");
    // What BuildKit would have to be asked for, and is not.
    for (line, text) in [
        (1, "FROM 10.1.2.3:5000/box:1\n"),
        (1, "# syntax=169.254.169.254/frontend\nFROM box:1\n"),
        (2, "FROM box:1\nCOPY --from=192.168.9.9:1/box /x /y\n"),
        (2, "FROM box:1\nADD http://169.254.169.254/latest/meta-data /x\n"),
    ] {
        let detail = api.failed(request(text), "address_not_allowed").await;
        assert_eq!(detail.details.as_ref().unwrap()["line"], line, "{detail:?}");
    }
    let detail = api.failed(request("FROM scratch\nENV A=b\n"), "invalid_image").await;
    assert!(!detail.retryable && detail.message.contains("no files at all"), "{detail:?}");
    assert_eq!(images(&docker), "");

    // Without a network a step reaches nobody; with one it reaches this host.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let text = format!("FROM box:1\nRUN nc -w 5 $(ip route | awk '/default/ {{print $3}}') {port} </dev/null\n");
    api.ready(request(&text)).await;
    let mut closed = request(&text);
    closed["build_config"]["internet_access"] = json!(false);
    api.failed(closed, "build_step_nonzero_exit").await;
    service.stop().await;
}

#[tokio::test]
async fn secrets_leave_no_trace() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let password = format!("canary-{}", hex::encode(rand::random::<[u8; 12]>()));
    let private = Registry::start_with_password("puller", &password);
    private.push("private", "1", &Image::busybox_variant("private")).await;
    let docker = Docker::start(&registry.as_hub());
    let mut service = Service::with([docker.setting()]).await;
    let api = service.api();
    let secret = format!("canary-{}", hex::encode(rand::random::<[u8; 12]>()));
    let text = format!(
        "FROM {} AS x\nFROM box:1\nCOPY --from=x /variant /variant\nRUN --mount=type=secret,id=token,required=true          echo it is $(cat /run/secrets/token); sha256sum </run/secrets/token >/sum; sleep 2\n\
         RUN --mount=type=secret,id=other test ! -e /run/secrets/other\n",
        private.reference("private:1")
    );
    let with = |auth: Value, secrets: Value| {
        let mut request = request(&text);
        request["registry_auth"] = auth;
        request["build_secrets"] = secrets;
        request
    };
    let auth = |password: &str| {
        let login = json!({"kind": "basic", "username": "puller", "password": password});
        json!([{"registry": private.address(), "auth": login}])
    };
    let token = json!([{"id": "token", "value": secret}]);
    for wrong in [json!([]), auth("canary-wrong")] {
        let detail = api.failed(with(wrong, token.clone()), "registry_unauthorized").await;
        assert_eq!((detail.code, detail.phase), (TemplateFailureDetailCode::Unauthorized, Phase::Auth), "{detail:?}");
    }
    let failed = api.build(with(auth(&password), json!([{"id": "unrelated", "value": secret}]))).await;
    let detail = failed.clone().failure("build_secret_missing");
    assert_eq!(detail.details.as_ref().unwrap()["secret_id"], "token", "{detail:?}");

    // Process lists are looked at while it builds.
    let started = api.start(with(auth(&password), token.clone())).await;
    let mut seen = String::new();
    while !api.status(&started.build_id, 0).await.build.status.is_terminal() {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                seen.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default()));
            }
        }
        assert!(!seen.contains(&secret) && !seen.contains(&password), "a secret in a process's arguments or variables");
        seen.clear();
        // Status requests have a rate too.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let built = api.finished(&started.build_id).await.expect_status(Status::Ready);
    assert!(built.says("it is ***"), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    let sum = hex::encode(Sha256::digest(secret.as_bytes()));
    assert_eq!(
        sandbox.sh("cut -d' ' -f1 /sum; cat /variant; ls /run/secrets 2>/dev/null").await,
        format!("{sum}\nprivate")
    );

    // What a step made with a secret is found by its tenant alone.
    let other = service.api_of("other");
    let without = with(auth(&password), json!([{"id": "unrelated", "value": secret}]));
    other.failed(without, "build_secret_missing").await;

    // A retry needs the same ones again.
    let path = format!("/v1/templates/builds/{}/retry", failed.build.build_id);
    for wrong in [json!({}), json!({"registry_auth": auth(&password), "build_secrets": token})] {
        api.post(&path, wrong).await.refused(400, "invalid_request");
    }
    let right = json!({"registry_auth": auth(&password), "build_secrets": [{"id": "unrelated", "value": secret}]});
    let retried: nullspace_api::TemplateBuild = api.post(&path, right).await.ok(202);
    // By now the step is in the cache, as with `docker build`.
    api.finished(&retried.build_id).await.expect_status(Status::Ready);

    let answers = api.get(&format!("/v1/templates/builds/{}?offset=0", started.build_id)).await.text();
    let log = service.log().lines().join("\n");
    service.stop().await;
    for canary in [&secret, &password] {
        assert!(!answers.contains(canary.as_str()) && !log.contains(canary.as_str()));
        let everything = [service.data(), docker.data(), docker.data().parent().unwrap().to_owned()];
        let grep = Command::new("grep").args(["-rlaF", "-e", canary]).args(everything).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "files with a secret");
    }
}

#[tokio::test]
async fn a_cancelled_dockerfile_leaves_nothing_running() {
    let (_registry, docker, mut service) = stack().await;
    let api = service.api();
    let build = api.start(request("FROM box:1\nRUN echo here I 'am'; sleep 1000\n")).await;
    api.until_said(&build.build_id, "here I am").await;
    until("the step runs", Duration::from_secs(90), async || !docker.steps().is_empty()).await;
    api.cancel(&build.build_id, "changed my mind").await;
    api.finished(&build.build_id).await.expect_status(Status::Cancelled);
    assert_eq!(docker.steps(), BTreeSet::new(), "a step of a cancelled build");
    service.settles().await;
    assert_eq!(images(&docker), "");
    service.stop().await;
}

#[tokio::test]
async fn without_buildkit_everything_else_works_and_one_that_goes_away_is_replaced() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let refused = api.post("/v1/templates/builds", request("FROM box:1\n")).await.refused(503, "feature_unavailable");
    assert!(refused.error.contains("docker.io"), "{refused:?}");
    let plan: Value = api.post("/v1/templates/plan", request("FROM scratch\n")).await.ok(200);
    assert_eq!(plan["build_backend"], "buildkit");
    let image = json!({"base_image": registry.reference("library/box:1"), "build_config": {"memory_mib": 192}});
    api.ready(image).await;
    service.stop().await;

    let (first, second) = (Docker::start(&registry.as_hub()), Docker::start(&registry.as_hub()));
    let both = format!("{},{}", first.setting().1, second.setting().1);
    let mut service = Service::with([("NULLSPACE_BUILDKIT", both)]).await;
    let doctor = service.command(&["doctor"]).output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.matches("Docker Engine 20.10").count(), 2, "{doctor}");
    let api = service.api();
    let build = api.start(request("FROM box:1\nRUN echo here I 'am'; sleep 5; echo done >/done\n")).await;
    api.until_said(&build.build_id, "here I am").await;
    drop(first);
    let built = api.finished(&build.build_id).await.expect_status(Status::Ready);
    assert!(built.says("closed the connection"), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("cat /done").await, "done");
    drop(sandbox);

    // Both are gone: a build that was accepted ends with what may be tried again.
    let build = api.start(request("FROM box:1\nRUN echo here I 'am'; sleep 1000\n")).await;
    api.until_said(&build.build_id, "here I am").await;
    drop(second);
    let failed = api.finished(&build.build_id).await;
    let detail = failed.failure("buildkit_unavailable");
    assert!(detail.retryable && detail.attempt == Some(3), "{detail:?}");
    service.stop().await;
}

/// Twenty thousand files with 500 MB in `make test-long`, else a quarter of both: a test of nullspace-buildkit always sends the
/// 500 MB.
#[tokio::test]
async fn a_context_of_thousands_of_files_is_built() {
    let (_registry, _docker, mut service) = stack().await;
    let api = service.api();
    let (bytes, count) = (25 << 10, if is_long() { 20_000 } else { 5_000 });
    let mut blobs = Vec::new();
    for number in 0..20_u8 {
        blobs.push(api.upload(&vec![number; bytes]).await);
    }
    let files: Vec<Value> = (0..count)
        .map(|index| json!({"path": format!("d{}/f{index}", index % 100), "entry_type": "file", "blob_id": blobs[index % 20]}))
        .collect();
    let mut wanted = request("FROM box:1\nCOPY . /context\n");
    wanted["build_context"] = json!({"files": files});
    wanted["build_config"]["disk_mb"] = json!(2048);
    let began = Instant::now();
    let built = api.ready(wanted).await;
    println!("{} s", began.elapsed().as_secs());
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("find /context -type f | wc -l").await, count.to_string());
    let sum = hex::encode(Sha256::digest(vec![7_u8; bytes]));
    assert_eq!(sandbox.sh("sha256sum </context/d7/f4907 | cut -d' ' -f1").await, sum);
    service.stop().await;
}

#[tokio::test]
async fn the_tests_own_docker_engine_builds_with_a_network_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push("library/box", "1", &Image::busybox()).await;
    let docker = Docker::start(&registry.as_hub());
    let data = docker.data();
    let context = data.parent().unwrap().join("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM box:1\nRUN ip -4 -o address show dev eth0 >/address\n").unwrap();
    docker.output(&["build", "-t", "built", context.to_str().unwrap()]);
    let address = docker.output(&["run", "--rm", "--network=none", "built", "cat", "/address"]);
    assert!(String::from_utf8_lossy(&address).contains("inet 10.213."), "{address:?}");
    // A step that runs when the engine ends goes with it.
    std::fs::write(context.join("Dockerfile"), "FROM box:1\nRUN sleep 1000\n").unwrap();
    let mut building = docker.command(&["build", context.to_str().unwrap()]).spawn().unwrap();
    until("the step runs", Duration::from_secs(90), async || !docker.steps().is_empty()).await;
    let name = docker.name();
    drop(docker);
    assert!(!building.wait().unwrap().success());
    assert_eq!(host::users_of(&data), BTreeSet::new());
    assert_eq!(host::interfaces(&name), Vec::<String>::new());
    assert_eq!(host::control_groups_named(&name), Vec::<PathBuf>::new());
}
