//! Every action of a declarative build, in real machines.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use nullspace_api::{TemplateBuildLogLevel as Level, TemplateBuildSourceType};
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, is_long};

/// A request of these steps over a small image.
fn request(registry: &Registry, name: &str, steps: Value) -> Value {
    json!({
        "name": name, "base_image": registry.reference("box:1"), "steps": steps,
        "build_config": {"memory_mib": 192, "disk_mb": 512},
    })
}

fn file(path: &str, content: &str, mode: Option<&str>) -> Value {
    json!({"path": path, "entry_type": "file", "content_base64": STANDARD.encode(content), "mode": mode})
}

#[tokio::test]
async fn steps_leave_behind_what_their_dockerfile_would() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let mut wanted = request(
        &registry,
        "all",
        json!([
            {"action": "run", "command": "echo \"$BUILD_ONLY $RUNTIME\" > envs; pwd > /pwd; id -un > /id"},
            {"action": "make_dir", "path": "/srv/data/deep", "mode": "0750"},
            {"action": "make_symlink", "target": "/srv/data", "path": "/data"},
            {"action": "workdir", "path": "/srv/app"},
            {"action": "copy", "sources": ["tree"], "dst": ".", "user": "app"},
            {"action": "copy", "sources": ["one.txt", "two.txt"], "dst": "both/", "mode": "0600", "user": "1000:2000"},
            {"action": "copy_items", "items": [
                {"sources": ["*.txt"], "dst": "/glob/"},
                {"sources": ["one.txt"], "dst": "/renamed.txt"},
                {"sources": ["two.txt"], "dst": "/glob"},
            ]},
            {"action": "run", "command": "echo as app > mine", "user": "root"},
            {"action": "user", "user": "app"},
            {"action": "workdir", "path": "own"},
            {"action": "run", "command": "id -un > who; id -Gn >> who; pwd >> who; echo $HOME >> who"},
            {"action": "rename", "src": "who", "dst": "whoever"},
            {"action": "run", "command": "touch gone; mkdir -p gone.d/deep; sleep 1000 & echo left", "user": "app:extra"},
            {"action": "remove", "path": "gone"},
            {"action": "remove", "path": "gone.d", "recursive": true},
            {"action": "remove", "path": "never", "force": true},
            {"action": "user", "user": "0"},
            {"action": "run", "command": "mkdir /run/sshd; echo kept > /run/kept; echo tmp > /tmp/kept; ps | grep -c '[s]leep' > /left; echo oops >&2"},
        ]),
    );
    wanted["build_envs"] = json!({"BUILD_ONLY": "while building"});
    wanted["runtime_config"] = json!({"default_envs": {"RUNTIME": "always"}, "default_user": "app"});
    wanted["start_cmd"] = json!("echo \"$BUILD_ONLY\" > /tmp/at-start; exec sleep 1000000");
    wanted["build_context"] = json!({"files": [
        file("one.txt", "1", None), file("two.txt", "2", Some("0755")),
        file("tree/deep/file", "in the tree", Some("0640")),
        {"path": "tree/empty", "entry_type": "dir", "mode": "0711"},
    ]});
    let built = api.ready(wanted.clone()).await;
    assert_eq!(built.build.source_type, TemplateBuildSourceType::Declarative);
    assert!(built.build.context_digest.is_some(), "{built:?}");
    let stderr = built.log.iter().find(|entry| entry.message == "oops").expect("stderr of a step");
    assert_eq!((stderr.level, stderr.step_index, stderr.total_steps), (Level::Warn, Some(18), Some(18)));
    assert!(built.says("Step 5/18: COPY --chown=app tree ."), "{built:?}");
    let defaults = built.build.runtime_defaults.clone().expect("runtime defaults");
    assert_eq!(
        (defaults.default_user.as_deref(), defaults.default_workdir.as_deref()),
        (Some("app"), Some("/srv/app/own"))
    );

    let check = async |template: &str| {
        let sandbox = api.sandbox(template).await;
        for (line, expected) in [
            ("cat /workspace/envs /pwd /id", "while building always\n/workspace\nroot"),
            ("stat -c %a:%u:%g /srv/data /srv/data/deep", "755:0:0\n750:0:0"),
            ("readlink /data", "/srv/data"),
            (
                "cd /srv/app && stat -c %n:%a:%u:%g deep deep/file empty",
                "deep:755:1000:1000\ndeep/file:640:1000:1000\nempty:711:1000:1000",
            ),
            ("cat /srv/app/deep/file", "in the tree"),
            (
                "stat -c %a:%u:%g /srv/app/both /srv/app/both/one.txt /srv/app/both/two.txt",
                "755:1000:2000\n600:1000:2000\n600:1000:2000",
            ),
            ("ls /glob; cat /renamed.txt; stat -c %a /glob/two.txt /renamed.txt", "one.txt\ntwo.txt\n1755\n644"),
            ("stat -c %U /srv/app/mine /srv/app/own", "root\napp"),
            ("cat whoever; ls -A", "app\napp extra\n/srv/app/own\n/home/app\nwhoever"),
            ("cat /run/kept /tmp/kept /left; test -d /run/sshd && echo there", "kept\ntmp\n0\nthere"),
            (
                "cat /tmp/at-start; echo \"$BUILD_ONLY$RUNTIME\"; id -un; pwd",
                "while building\nalways\napp\n/srv/app/own",
            ),
        ] {
            assert_eq!(sandbox.sh(line).await, expected, "{line}");
        }
        sandbox.delete().await;
    };
    check("all").await;

    // Nothing has changed: no machine, and the very same sandbox.
    wanted["name"] = json!("again");
    let again = api.ready(wanted.clone()).await;
    let summary = again.build.cache_summary.expect("a summary");
    assert_eq!((summary.final_artifact_hits, summary.layer_misses, summary.layer_stores), (1, 0, 0), "{again:?}");
    assert!(!again.says("Machine booted"), "{again:?}");
    check("again").await;

    // The first goes; the other, and what is built from it, stay.
    assert_eq!(api.delete("/v1/templates/all").await.status, 204);
    let child = json!({
        "name": "child", "base_image": format!("{}/again", built.build.namespace_slug),
        "steps": [{"action": "run", "command": "cat whoever > /tmp/child; id -un >> /tmp/child"}],
        "build_config": {"memory_mib": 192},
    });
    let child = api.ready(child).await;
    assert_eq!(child.build.source_digest.as_ref(), Some(&again.build.build_id));
    let sandbox = api.sandbox(child.template()).await;
    assert_eq!(sandbox.sh("tail -n 1 /tmp/child; cat /tmp/at-start; pwd").await, "app\n\n/srv/app/own");
    sandbox.delete().await;
    service.stop().await;
}

#[tokio::test]
async fn a_step_that_fails_says_which_why_and_what_to_do() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    registry.push("bare", "1", &Image::one_binary()).await;
    let mut service = Service::with([("NULLSPACE_STEP_TIMEOUT_SECS", "30".to_owned())]).await;
    let api = service.api();
    let step = |step: Value| request(&registry, "bad", json!([{"action": "run", "command": "echo fine"}, step]));

    let failed = api.build(step(json!({"action": "run", "command": "echo out; echo the reason >&2; exit 7"}))).await;
    let asked = failed.build.cache_summary.as_ref().expect("what the caches were asked for");
    assert_eq!((asked.layer_misses, asked.layer_stores, asked.final_artifact_misses), (3, 2, 1), "{failed:?}");
    let detail = failed.clone().failure("build_step_nonzero_exit");
    assert_eq!((detail.phase.as_str(), detail.step_index, detail.retryable), ("build_step", Some(2), false));
    let details = detail.details.expect("details");
    assert_eq!(details["exit_code"], 7);
    let mut last: Vec<&str> =
        details["last_output"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    last.sort_unstable();
    assert_eq!(last, ["out", "the reason"]);
    assert!(failed.says("fine") && failed.says("the reason"), "{failed:?}");

    let cases = [
        (json!({"action": "run", "command": "sleep 60"}), "build_step_timeout", "30 s"),
        (json!({"action": "run", "command": "true", "user": "nobody-here"}), "unknown_user", "nobody-here"),
        (json!({"action": "run", "command": "dd if=/dev/zero of=/full bs=1M"}), "disk_full", "512 MiB"),
        (json!({"action": "apt_install", "packages": ["curl"]}), "program_missing", "apt-get"),
        (json!({"action": "rename", "src": "/none", "dst": "/other"}), "build_step_failed", "/none"),
        (json!({"action": "remove", "path": "/etc"}), "build_step_failed", "recursive"),
        (json!({"action": "run", "command": "poweroff -f; sleep 5"}), "machine_failed", "step 2"),
        // In `make test-long` only: each of another case's kind.
        (json!({"action": "run", "command": "kill -9 $$"}), "build_step_nonzero_exit", "signal 9"),
        (json!({"action": "pip_install", "packages": ["x"]}), "program_missing", "pip"),
        (json!({"action": "make_dir", "path": "/etc/passwd"}), "build_step_failed", "/etc/passwd"),
    ];
    // Two at once: one of them waits for half a minute.
    let (api, step) = (&api, &step);
    let asked = if is_long() { cases.len() } else { 7 };
    let checked = stream::iter(cases.into_iter().take(asked)).map(|(wrong, reason, said)| async move {
        let detail = api.failed(step(wrong.clone()), reason).await;
        assert!(detail.message.contains(said), "{wrong}: {detail:?}");
        assert_eq!((detail.phase.as_str(), detail.step_index), ("build_step", Some(2)), "{wrong}: {detail:?}");
        assert!(!detail.suggested_action.is_empty());
    });
    checked.buffer_unordered(2).collect::<()>().await;

    // Without a shell: what needs one says so, what needs none works.
    let bare = |steps: Value| json!({"base_image": registry.reference("bare:1"), "steps": steps, "build_config": {"memory_mib": 192}});
    let detail = api.failed(bare(json!([{"action": "run", "command": "true"}])), "shell_missing").await;
    assert!(detail.message.contains("shell"), "{detail:?}");
    let built = api
        .ready(bare(json!([
            {"action": "make_dir", "path": "/a/b", "mode": "0700"},
            {"action": "make_symlink", "target": "b", "path": "/a/link"},
            {"action": "rename", "src": "/busybox", "dst": "/a/b"},
        ])))
        .await;
    let sandbox = api.sandbox(built.template()).await;
    let listed = sandbox.run(&["/a/b/busybox", "ls", "-l", "/a"]).await;
    assert!(listed.stdout.contains("drwx------") && listed.stdout.contains("link -> b"), "{listed:?}");
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn a_cancelled_step_ends_at_once_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let steps = json!([{"action": "run", "command": "echo waiting; trap '' TERM INT; while :; do sleep 1; done"}]);
    let started = api.start(request(&registry, "slow", steps)).await;
    api.until_said(&started.build_id, "waiting").await;
    let asked = std::time::Instant::now();
    api.cancel(&started.build_id, "enough").await;
    let cancelled = api.finished(&started.build_id).await;
    assert!(asked.elapsed().as_secs() < 60, "{:?}", asked.elapsed());
    assert_eq!(cancelled.build.cancellation_reason.as_deref(), Some("enough"));
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn output_is_kept_as_lines_told_apart_and_bounded() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let command = r"
        printf 'a\377\001b\n'; printf 'no end'; echo; head -c 20000 /dev/zero | tr '\0' x; echo
        seq 1 6000; echo last";
    let built = api.ready(request(&registry, "loud", json!([{"action": "run", "command": command}]))).await;
    assert!(built.says("a\u{fffd}\u{1}b") && built.says("no end"), "{built:?}");
    let output: Vec<_> =
        built.log.iter().filter(|entry| entry.step_index == Some(1) && entry.cache_status.is_none()).collect();
    assert!(output.iter().all(|entry| entry.message.len() <= 8 * 1024), "a line that was not cut");
    // The step's own line, then 5000 of which the last says what is missing.
    assert_eq!(output.len(), 5001);
    let end = output.last().expect("lines");
    assert!(end.level == Level::Warn && end.message.contains("not kept"), "{end:?}");
    service.stop().await;
}
