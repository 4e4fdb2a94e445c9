//! Root images as chunks, and what operators see and do of them.

use nullspace_api::TemplateInfo;
use nullspace_db::{Collection, Health, SqliteStore};
use serde_json::json;

use crate::fixture::artifacts::root_images;
use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn templates_work_when_their_raw_files_have_made_room_and_after_their_parents_are_gone() {
    let registry = Registry::start();
    for tag in ["0", "1"] {
        registry.push("box", tag, &Image::busybox_variant(tag)).await;
    }
    // No raw file is kept that is not in use.
    let mut service = Service::with([("NULLSPACE_ROOTFS_CACHE_MIB", "0".to_owned())]).await;
    let api = service.api();
    let build = |name: &str, tag: &str| {
        json!({
            "name": name, "base_image": registry.reference(&format!("box:{tag}")),
            "build_config": {"memory_mib": 128, "disk_mb": 512},
            "start_cmd": "echo here > /started; exec sleep 1000000",
        })
    };
    api.ready(build("one", "0")).await;
    api.ready(build("two", "1")).await;
    let child = json!({"name": "child", "base_image": "nullspace/one", "build_config": {"memory_mib": 128}});
    api.ready(child).await;
    for name in ["one", "two", "child"] {
        let sandbox = api.sandbox(name).await;
        assert_eq!(sandbox.sh("cat /started; sha256sum /bin/busybox | wc -c").await.lines().next(), Some("here"));
        // While it lives its disk does.
        assert!(!root_images(&service.data()).is_empty());
        sandbox.delete().await;
    }

    // Beside the running service.
    service.verify_store();
    let stats = service.command(&["store", "stats"]).output().unwrap();
    let text = String::from_utf8(stats.stdout).unwrap();
    assert!(stats.status.success() && text.contains("root images       2 (0 as files only)"), "{text}");
    assert!(text.contains("snapshots         3 (0 as files only)"), "{text}");
    // Each template alone costs less than what the three have in common.
    let costs: Vec<Vec<f64>> = text
        .lines()
        .filter(|line| line.starts_with("tmpl_"))
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    assert_eq!(costs.len(), 3, "{text}");
    assert!(costs.iter().all(|cost| cost[0] > 0.0 && cost[1] > cost[0]), "{text}");
    let refused = service.command(&["store", "gc"]).output().unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("it collects by itself; stop it"), "{text}");
    let page = api.get("/metrics").await.text();
    for line in ["nullspace_store_chunks ", "nullspace_rootfs_written_back "] {
        let value = page.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {page}"));
        assert!(value.parse::<u64>().unwrap() > 0, "{line}{value}");
    }

    assert_eq!(api.delete("/v1/templates/one").await.status, 204);
    service.settles().await;
    service.stop().await;
    service.collect_store();
    service.verify_store();
    assert!(root_images(&service.data()).is_empty(), "no raw file is kept that is not in use");
    service.restart().await;
    let api = service.api();
    let sandbox = api.sandbox("child").await;
    assert_eq!(sandbox.sh("cat /started").await, "here");
    sandbox.delete().await;
    let left: Vec<TemplateInfo> = api.get("/v1/templates").await.ok(200);
    assert_eq!(left.len(), 2, "{left:?}");
    service.stop().await;
}

#[tokio::test]
async fn what_something_else_removed_is_found_and_named() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    // What an S3 store makes of it is in s3.rs.
    let mut service = Service::on_folder([]);
    service.restart().await;
    let config = json!({"memory_mib": 128, "disk_mb": 512});
    service.api().ready(json!({"base_image": registry.reference("box:1"), "build_config": config})).await;
    service.settles().await;
    service.stop().await;
    service.verify_store();

    // What is not mounted is no reason to forget, nor a database that is missing one to remove.
    let folders = ["chunks/manifests", "chunks/packs", "snapshots", "rootfs"];
    let stored = |service: &Service| folders.map(|folder| entries(&service.data().join(folder)));
    let before = stored(&service);
    assert!(before.iter().all(|names| !names.is_empty()), "{before:?}");
    for (hidden, said) in [("chunks", "and none of them is in"), ("nullspace.db", "is missing, and the files that")] {
        let (path, elsewhere) = (service.data().join(hidden), service.data().join("elsewhere"));
        std::fs::rename(&path, &elsewhere).unwrap();
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["store", "gc"]] {
            let output = service.command(command).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && text.contains(said), "{command:?} without {hidden}: {text}");
        }
        if path.is_dir() {
            // An empty folder, as where a volume is mounted; what it then hides was not touched.
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::rename(&elsewhere, &path).unwrap();
        assert_eq!(stored(&service), before, "without {hidden}");
    }
    // Nor is a folder or a database that belongs to another store.
    let file = service.data().join("store");
    let own = std::fs::read_to_string(&file).unwrap();
    let other = "st_0123456789abcdef0123456789abcdef";
    for text in [Some(other), None] {
        match text {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let folder = text.map_or("no store id".to_owned(), |id| format!("the store id {id}"));
        let said = [format!("the folder has {folder}"), format!("the database has the store id {}", own.trim())];
        for (command, code) in
            [(&["serve", "--listen", "127.0.0.1:0"][..], 1), (&["store", "gc"], 1), (&["store", "repair"], 1)]
        {
            let output = service.command(command).output().unwrap();
            let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
            assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
            assert!(said.iter().all(|said| text.contains(said)), "{command:?}: {text}");
        }
        assert_eq!(stored(&service), before);
    }
    let repaired = service.command(&["store", "repair", "--yes"]).output().unwrap();
    assert!(repaired.status.success(), "{repaired:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), own, "the database's id");
    assert_eq!(stored(&service), before);
    // The command's earlier name.
    let lost = service.command(&["store", "accept-loss"]).output().unwrap();
    assert!(lost.status.success() && lost.stdout == b"nothing is lost\n", "{lost:?}");

    let packs = service.data().join("chunks/packs");
    let pack = std::fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(&pack, service.data().join("elsewhere")).unwrap();
    let verified = service.command(&["store", "verify"]).output().unwrap();
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(verified.status.code() == Some(1) && text.contains("is missing"), "{text}");
    std::fs::rename(service.data().join("elsewhere"), &pack).unwrap();
    service.verify_store();

    // A snapshot that is lost for good is forgotten when the operator says so, and not before.
    let database = SqliteStore::open(&service.data().join("nullspace.db")).await.unwrap();
    let known = database.known_files().await.unwrap();
    database.close().await;
    let (artifact, streams) = known.artifacts.first_key_value().unwrap();
    for manifest in streams.as_ref().unwrap().0.values() {
        std::fs::remove_file(service.data().join("chunks/manifests").join(manifest)).unwrap();
    }
    let asked = service.command(&["store", "repair"]).output().unwrap();
    let text = String::from_utf8(asked.stdout).unwrap();
    assert!(asked.status.code() == Some(1) && text.contains(artifact.as_str()), "{text}");
    let done = service.command(&["store", "repair", "--yes"]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    service.verify_store();
    service.restart().await;
    let left: Vec<TemplateInfo> = service.api().get("/v1/templates").await.ok(200);
    assert!(left.is_empty(), "{left:?}");
    service.stop().await;
}

fn entries(folder: &std::path::Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
