//! Ends of API keys, and of what they have made.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateApiKeyRequest, CreateSignedPreviewUrlRequest, ErrorResponseCode as Code, PreviewGrantInfoStatus,
    PreviewUrlResponse,
};
use nullspace_db::{KeySpec, NewKey};
use nullspace_service::{Entered, Error, Keys as _, Knock, Ports as _, Previews as _, Sandboxes as _};
use nullspace_types::Caller;
use serde_json::json;

use super::{House, usual};

impl House {
    /// The tenant, with a new key.
    async fn with_key(&self, expires_at: Option<Timestamp>) -> Caller {
        let spec = KeySpec { expires_at, ..KeySpec::default() };
        let db = &self.control.inner.db;
        let made = db.create_key(self.caller.tenant, &NewKey::generate(), spec, None, Timestamp::now()).await.unwrap();
        Caller { key: Some(made.id), ..self.caller.clone() }
    }

    async fn url_of(&self, caller: &Caller, id: &str) -> Result<PreviewUrlResponse, Error> {
        let request = CreateSignedPreviewUrlRequest { expires_in_seconds: Some(600) };
        self.control.create_signed_preview_url(caller, id, 8000, request).await
    }

    async fn enter(&self, id: &str, url: &PreviewUrlResponse) -> Result<Entered, Code> {
        let token = url.url.split_once("?edge_token=").expect("a token").1;
        let knock = Knock { sandbox: id.to_owned(), port: 8000, token: Some(token.into()), websocket: false };
        self.control.enter(knock).await.map_err(|error| error.code)
    }
}

#[tokio::test]
async fn preview_urls_end_with_the_key_that_made_them() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"network": {"allow_public_traffic": false}})).await;
    let (one, other) = (house.with_key(None).await, house.with_key(None).await);
    let (first, second) = (house.url_of(&one, &id).await.unwrap(), house.url_of(&other, &id).await.unwrap());
    let (used, stays) = (house.enter(&id, &first).await.unwrap(), house.enter(&id, &second).await.unwrap());
    house.control.revoke_key(&other, &one.key.unwrap().to_string()).await.unwrap();
    assert!(used.over.is_cancelled() && !stays.over.is_cancelled());
    assert_eq!(house.enter(&id, &first).await.err(), Some(Code::SandboxNotFound));
    house.enter(&id, &second).await.unwrap();
    let listed = house.control.list_preview_urls(&other, &id, None).await.unwrap().items;
    let status = |url: &PreviewUrlResponse| listed.iter().find(|grant| grant.id == url.grant.id).unwrap().status;
    assert_eq!(status(&first), PreviewGrantInfoStatus::Revoked);
    assert_eq!(status(&second), PreviewGrantInfoStatus::Active);
    // A request of the revoked key that is still under way makes none.
    assert_eq!(house.url_of(&one, &id).await.unwrap_err().code, Code::Unauthorized);
    house.control.stop().await;
}

#[tokio::test]
async fn what_another_process_revokes_ends_within_seconds() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let caller = house.with_key(None).await;
    let url = house.url_of(&caller, &id).await.unwrap();
    let used = house.enter(&id, &url).await.unwrap();
    house.control.inner.db.revoke_key(None, caller.key.unwrap(), Timestamp::now()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), used.over.cancelled()).await.expect("it ends by itself");
    house.control.stop().await;
}

#[tokio::test]
async fn a_rotation_ends_preview_urls_with_the_older_key_and_links_are_each_keys_own() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let (one, other) = (house.with_key(None).await, house.with_key(None).await);
    let link = async |caller: &Caller| house.control.get_preview_url(caller, &id, 8000).await.unwrap();
    let first = link(&one).await;
    assert_eq!(link(&one).await.url, first.url);
    assert_ne!(link(&other).await.url, first.url, "it would end with the other key");
    let request = CreateApiKeyRequest { grace_secs: Some(60), ..CreateApiKeyRequest::default() };
    house.control.rotate_key(&one, &one.key.unwrap().to_string(), request).await.unwrap();
    let grant = house.control.list_preview_urls(&one, &id, None).await.unwrap().items;
    let grant = grant.into_iter().find(|grant| grant.id == first.grant.id).unwrap();
    let left = Timestamp::from(grant.expires_at).duration_since(Timestamp::now());
    assert!(left <= SignedDuration::from_secs(60), "{left:?}");
    house.enter(&id, &first).await.unwrap();
    // A link of a key that ends soon is given out again, too.
    let again = link(&one).await;
    assert_eq!(link(&one).await.url, again.url);
    house.control.stop().await;
}

#[tokio::test]
async fn a_key_makes_none_that_outlives_it() {
    let house = House::new(usual()).await;
    let end = Timestamp::from_second(Timestamp::now().as_second() + 1000).unwrap();
    let (short, long) = (house.with_key(Some(end)).await, house.with_key(None).await);
    let request = |secs: Option<i64>| CreateApiKeyRequest {
        expires_at: secs.map(|secs| (end + SignedDuration::from_secs(secs)).into()),
        ..CreateApiKeyRequest::default()
    };
    let ends = async |caller: &Caller, secs| {
        house.control.create_key(caller, request(secs)).await.unwrap().expires_at.map(Timestamp::from)
    };
    assert_eq!(ends(&short, None).await, Some(end));
    assert_eq!(ends(&short, Some(500)).await, Some(end), "no later than its maker");
    assert_eq!(ends(&short, Some(-500)).await, Some(end - SignedDuration::from_secs(500)));
    assert_eq!(
        (ends(&long, None).await, ends(&long, Some(500)).await),
        (None, Some(end + SignedDuration::from_secs(500)))
    );

    let rotated = house.control.rotate_key(&short, &short.key.unwrap().to_string(), request(None)).await.unwrap();
    assert_eq!(rotated.expires_at.map(Timestamp::from), Some(end), "the older key's end");
    let late = house.control.create_key(&short, request(None)).await.unwrap_err();
    assert_eq!(late.code, Code::TransitionConflict, "its key is revoked by now");
    let rotated = house.control.rotate_key(&long, &rotated.id, request(Some(700))).await.unwrap();
    assert_eq!(rotated.expires_at.map(Timestamp::from), Some(end + SignedDuration::from_secs(700)));
    house.control.stop().await;
}

#[tokio::test]
async fn nothing_of_the_token_for_its_ports_is_left_of_a_sandbox_that_has_ended() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"network": {"allow_public_traffic": false}})).await;
    let db = &house.control.inner.db;
    let row = async || db.get_sandbox(&house.caller, id.parse().unwrap()).await.unwrap();
    assert!(row().await.sealed_traffic_token.is_some());
    let snapshot = house.pause(&id).await.unwrap();
    let snapshot = db.get_snapshot(&house.caller, snapshot.parse().unwrap()).await.unwrap();
    assert!(!snapshot.config.to_string().contains("token"), "{}", snapshot.config);
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    let row = row().await;
    assert_eq!(row.sealed_traffic_token, None);
    assert!(!row.config.to_string().contains("token"), "{}", row.config);
    house.control.stop().await;
}
