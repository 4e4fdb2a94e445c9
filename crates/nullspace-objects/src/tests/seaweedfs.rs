//! The suite on a real S3 server, and a server that is killed within uploads and downloads.

use std::time::Duration;

use bytes::Bytes;

use super::conformance::{listed, suite};
use super::weed::{SECRET, Weed};
use super::{content, file, name, read};
use crate::{Error, Faults, Limits, Objects, PART_BYTES, PARTS_OF_A_CALL, S3Credentials, S3Settings, Stop};

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let Some(weed) = Weed::start().await else { return };
    suite(&weed.store("one/store")).await;
    suite(&weed.store("")).await;
    no_upload_is_left(&weed).await;
    tls(&weed).await;
    prefixes_are_apart(&weed).await;
    refusals(&weed).await;
    reading_keys(&weed).await;
    bounded_memory(&weed).await;
    let faults = Faults::new(1).unavailable(10).lost_answers(5).cut_bodies(20);
    let pause = Duration::from_millis(5);
    let limits = Limits { attempts: 40, backoff: pause, longest_backoff: pause, ..Limits::default() };
    suite(&Objects::faulty(&weed.store("faults").with_limits(limits), faults)).await;
}

/// What the suite stopped was discarded, also where the caller went away.
async fn no_upload_is_left(weed: &Weed) {
    for _ in 0..100 {
        if weed.unfinished_uploads().await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(weed.unfinished_uploads().await, 0);
    // The count counts.
    let upload = weed.store("").inner.backend.begin(&name("counted")).await.unwrap();
    assert_eq!(weed.unfinished_uploads().await, 1);
    upload.abort().await.unwrap();
    assert_eq!(weed.unfinished_uploads().await, 0);
}

async fn tls(weed: &Weed) {
    let (settings, ca) = weed.tls_settings();
    let trusting = Objects::s3(S3Settings { extra_ca_pem: Some(ca), ..settings.clone() }).unwrap();
    trusting.check().await.unwrap();
    let limits = Limits { attempts: 2, backoff: Duration::from_millis(1), ..Limits::default() };
    let error = Objects::s3(settings).unwrap().with_limits(limits).check().await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what } if what.contains("certificate")), "{error:?}");
}

async fn prefixes_are_apart(weed: &Weed) {
    let (one, two) = (weed.store("p/one"), weed.store("p/one2"));
    one.put(&name("a"), Bytes::from_static(b"1")).await.unwrap();
    two.put(&name("a"), Bytes::from_static(b"22")).await.unwrap();
    assert_eq!(one.get(&name("a"), 10).await.unwrap(), "1");
    assert_eq!(listed(&one, "").await.into_iter().collect::<Vec<_>>(), [("a".to_owned(), 1)]);
    assert_eq!(listed(&two, "").await.into_iter().collect::<Vec<_>>(), [("a".to_owned(), 2)]);
    assert_eq!(listed(&weed.store(""), "p").await.len(), 2);
    one.delete(&name("a")).await.unwrap();
    two.delete(&name("a")).await.unwrap();
}

async fn refusals(weed: &Weed) {
    let keys = |id: &str, secret: &str| S3Credentials::Keys {
        access_key_id: id.to_owned(),
        secret_access_key: secret.into(),
        session_token: None,
    };
    for (settings, says) in [
        (S3Settings { credentials: keys("other", SECRET), ..weed.settings("") }, "credentials"),
        (S3Settings { credentials: keys("id", "canary-wrong"), ..weed.settings("") }, "credentials"),
        (S3Settings { bucket: "missing-bucket".to_owned(), ..weed.settings("") }, "bucket"),
    ] {
        let store = Objects::s3(settings).unwrap();
        for outcome in [
            store.check().await,
            store.get(&name("a"), 1).await.map(drop),
            store.put_file(&name("a"), file(&content(1, PART_BYTES + 1)), &Stop::new()).await.map(drop),
        ] {
            let Err(error) = outcome else { panic!("{says}: the store allows it: {store:?}") };
            assert!(matches!(&error, Error::Denied { setting, .. } if setting.contains(says)), "{says}: {error:?}");
            assert!(!format!("{error}{error:?}").contains("canary"), "{error:?}");
        }
    }
}

/// A key that may read is not one that may write.
async fn reading_keys(weed: &Weed) {
    weed.store("").put(&name("read"), Bytes::from_static(b"x")).await.unwrap();
    let credentials = S3Credentials::Keys {
        access_key_id: "reader".to_owned(),
        secret_access_key: SECRET.into(),
        session_token: None,
    };
    let store = Objects::s3(S3Settings { credentials, ..weed.settings("") }).unwrap();
    assert_eq!(store.get(&name("read"), 1).await.unwrap(), "x");
    let error = store.check().await.unwrap_err();
    assert!(matches!(&error, Error::Denied { setting, .. } if setting.contains("may do")), "{error:?}");
    weed.store("").delete(&name("read")).await.unwrap();
}

async fn bounded_memory(weed: &Weed) {
    let store = weed.store("memory");
    let long = tempfile::tempfile().unwrap();
    long.set_len(256 << 20).unwrap();
    assert_eq!(store.put_file(&name("long"), long, &Stop::new()).await.unwrap(), 256 << 20);
    let parts = store.parts_in_memory();
    assert_eq!((parts.now, parts.most), (0, PARTS_OF_A_CALL));
    store.delete(&name("long")).await.unwrap();
}

/// Either the whole object or an error, and never a short object.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_no_short_object() {
    let Some(mut weed) = Weed::start().await else { return };
    let data = content(9, 6 * PART_BYTES + 4321);
    let bytes = data.len() as u64;
    let patient = weed.patient("killed");
    // One that gives up while the server is away, and one that waits for it.
    let impatient =
        patient.with_limits(Limits { attempts: 2, backoff: Duration::from_millis(10), ..patient.inner.limits });
    // Uploads and downloads of both, or one of each: a restart takes the server ten seconds and more.
    let all = [(&impatient, &patient, 50), (&patient, &impatient, 300)];
    let rounds = if std::env::var_os("NULLSPACE_TEST_LONG").is_some() { 2 } else { 1 };
    for (round, (sender, receiver, after)) in all.into_iter().take(rounds).enumerate() {
        let name = name(&format!("{round}"));
        let upload = tokio::spawn({
            let (store, name, file) = (sender.clone(), name.clone(), file(&data));
            async move { store.put_file(&name, file, &Stop::new()).await }
        });
        tokio::time::sleep(Duration::from_millis(after)).await;
        weed.restart().await;
        let outcome = upload.await.unwrap();
        println!("upload killed after {after} ms: {outcome:?}");
        let stored = patient.size(&name).await.unwrap();
        match outcome {
            Ok(sent) => assert_eq!((sent, stored), (bytes, Some(bytes))),
            Err(error) => {
                assert!(matches!(error, Error::Unavailable { .. } | Error::Damaged { .. }), "{error:?}");
                assert!(stored.is_none() || stored == Some(bytes), "a short object: {stored:?}");
            }
        }
        assert_eq!(patient.put_file(&name, file(&data), &Stop::new()).await.unwrap(), bytes);

        let download = tokio::spawn({
            let (store, name) = (receiver.clone(), name.clone());
            async move {
                let into = file(b"");
                let outcome = store.download(&name, &into, bytes).await;
                (outcome, into)
            }
        });
        tokio::time::sleep(Duration::from_millis(after / 4)).await;
        weed.restart().await;
        let (outcome, into) = download.await.unwrap();
        println!("download killed after {} ms: {outcome:?}", after / 4);
        match outcome {
            Ok(()) => assert!(read(&into) == data, "a download that ends well is whole"),
            Err(error) => assert!(matches!(error, Error::Unavailable { .. }), "{error:?}"),
        }
        let into = file(b"");
        patient.download(&name, &into, bytes).await.unwrap();
        assert!(read(&into) == data);
    }
    // A server that stays away is an error in bounded time.
    weed.kill();
    let limits = Limits { attempts: 3, backoff: Duration::from_millis(50), ..Limits::default() };
    let outcome = patient.with_limits(limits).put_file(&name("away"), file(&data), &Stop::new()).await;
    assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
}
