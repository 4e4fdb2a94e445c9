//! What a build's steps rely on: files of its context, and the artifact of an equal build.

use nullspace_db::{DbError, FinishReady, HeldBlob, NewBuild, WantedBlob};
use nullspace_types::{Blob, BlobId, Rootfs};

use crate::fixture::{Fixture, ROOMY, at, entry, new_build, result, rootfs};

#[tokio::test]
async fn a_builds_files_are_kept_until_it_is_over_and_forced_ones_begin_a_generation() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let id = BlobId::new(&"1".repeat(64), 60).unwrap();
    let wants = |force| {
        let blobs = vec![WantedBlob { id: id.clone(), force }];
        NewBuild { blobs, ..new_build("web", &["default"]) }
    };
    // Not there: nothing is accepted.
    let refused = f.store.accept_build(&caller, wants(false), entry("start"), ROOMY, at(1)).await;
    assert!(matches!(refused, Err(DbError::Conflict { .. })), "{refused:?}");
    f.store.put_blob(&caller, &id, 100, at(1)).await.unwrap();
    for (force, generation) in [(false, 0), (true, 1), (false, 1)] {
        f.store.accept_build(&caller, wants(force), entry("start"), ROOMY, at(2)).await.unwrap();
        let (lease, _) = f.run("worker", at(3)).await;
        assert_eq!(f.store.held_blobs(&lease).await.unwrap(), [HeldBlob { id: id.clone(), generation }]);
        let blob = Blob { tenant: caller.tenant, id: id.clone() };
        assert!(f.store.collectable_blobs(at(100), 10).await.unwrap().is_empty());
        assert!(!f.store.purge_blob(&blob, at(100)).await.unwrap());
        f.store.finish_cancelled(&lease, entry("cancelled"), at(4)).await.unwrap();
        assert_eq!(f.store.collectable_blobs(at(100), 10).await.unwrap(), [blob]);
    }
}

#[tokio::test]
async fn an_artifact_is_found_by_its_key_while_it_can_be_used_and_held_by_who_found_it() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let next = async || {
        f.store.accept_build(&caller, new_build("web", &["default"]), entry("start"), ROOMY, at(1)).await.unwrap();
        f.run("worker", at(2)).await
    };
    let (lease, build) = next().await;
    assert_eq!(f.store.find_final(&lease, "key").await.unwrap(), None);
    f.store.put_rootfs(&lease, rootfs("a"), at(2)).await.unwrap();
    let finish = FinishReady { final_key: Some("key".to_owned()), ..result() };
    let _ = f.store.finish_ready(&lease, finish, at(3)).await.unwrap();

    let (lease, _) = next().await;
    assert_eq!(f.store.find_final(&lease, "other").await.unwrap(), None);
    assert_eq!(f.store.find_final(&lease, "key").await.unwrap().map(|found| found.id), Some(build.artifact_id));
    f.delete(&caller, "web", at(4)).await.unwrap();
    // Held: it can be deleted, and its files stay for the build that found it.
    assert!(f.store.collectable_artifacts(at(9999), 10).await.unwrap().is_empty());
    f.store.finish_cancelled(&lease, entry("cancelled"), at(5)).await.unwrap();
    assert_eq!(f.store.collectable_artifacts(at(9999), 10).await.unwrap().len(), 1);
    let (lease, _) = next().await;
    assert_eq!(f.store.find_final(&lease, "key").await.unwrap(), None);
}

#[tokio::test]
async fn of_a_steps_layers_the_newest_is_found_and_kept() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    f.accept(&caller, "web").await;
    let (lease, _) = f.run("worker", at(2)).await;
    assert_eq!(f.store.find_layer(&lease, "step", at(3)).await.unwrap(), None);
    let layer = |key: char| Rootfs { key: key.to_string().repeat(32), ..rootfs(&key.to_string()) };
    for (key, seconds) in [('a', 3), ('b', 4)] {
        let stored = f.store.put_layer(&lease, layer(key), "step", at(seconds)).await.unwrap();
        assert_eq!(stored.key, layer(key).key);
    }
    assert_eq!(f.store.find_layer(&lease, "other", at(5)).await.unwrap(), None);
    let found = f.store.find_layer(&lease, "step", at(5)).await.unwrap().unwrap();
    assert_eq!(found.key, layer('b').key);
    f.store.finish_cancelled(&lease, entry("cancelled"), at(6)).await.unwrap();
    // Nobody holds them now; the one that was found last is the last to go.
    let unused: Vec<String> = f.store.collectable_rootfs(at(9), 9).await.unwrap().into_iter().map(|r| r.key).collect();
    assert_eq!(unused, [layer('a').key, layer('b').key]);
}
