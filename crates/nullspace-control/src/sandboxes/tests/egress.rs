//! Egress policies: kept over the life of a sandbox, changed while it runs, and refused where they would not hold.

use std::sync::atomic::Ordering;

use nullspace_api::{
    CreateSandboxRequest, CreateSnapshotRequest, ErrorResponseCode as Code, NetworkEgressPolicyMode,
    SandboxStatus as Status, UpdateEgressRequest, UpdateEgressResponse,
};
use nullspace_definition::egress::check_egress;
use nullspace_service::{Error, Life as _, Sandboxes as _};
use nullspace_types::EgressPolicy;
use serde_json::{Value, json};

use super::{House, KEY, context, usual};

fn request(policy: &Value) -> UpdateEgressRequest {
    serde_json::from_value(json!({ "egress": policy })).unwrap()
}

fn policy(policy: &Value) -> EgressPolicy {
    check_egress(&request(policy).egress).unwrap()
}

impl House {
    async fn update(&self, id: &str, policy: &Value) -> Result<UpdateEgressResponse, Error> {
        self.control.update_egress(&self.caller, id, request(policy)).await
    }

    fn egress(&self, id: &str) -> EgressPolicy {
        self.host.machine(id).egress
    }
}

#[tokio::test]
async fn a_policy_is_there_at_the_start_and_stays_over_pauses_forks_snapshots_and_a_restart() {
    let mut house = House::new(usual()).await;
    let first = json!({"mode": "custom", "allow_cidrs": ["1.2.3.4/32"], "deny_cidrs": ["0.0.0.0/0"]});
    let id = house.create(json!({"network": {"allow_out": ["1.2.3.4"], "deny_out": ["0.0.0.0/0"]}})).await;
    assert_eq!(house.egress(&id), policy(&first));
    let plain = house.create(json!({})).await;
    assert!(house.egress(&plain).is_open());

    let next = json!({"mode": "deny_all", "rate_limit": {"pps": 100}});
    let answer = house.update(&id, &next).await.unwrap();
    assert_eq!(json!(answer), json!({"sandbox_id": id, "egress": next}));
    assert_eq!(house.egress(&id), policy(&next));

    let fork = house.control.fork_sandbox(&house.caller, &id, &context(None)).await.unwrap().id;
    let kept = house
        .control
        .create_snapshot(&house.caller, &id, CreateSnapshotRequest::default(), &context(None))
        .await
        .unwrap();
    let copy = house.create(json!({"snapshot_id": kept.id})).await;
    let other = house.create(json!({"snapshot_id": kept.id, "network": {"egress": {"mode": "allow_all"}}})).await;
    house.pause(&id).await.unwrap();
    let resumed = house.resume(&id).await.unwrap();
    for same in [&fork, &copy, &resumed] {
        assert_eq!(house.egress(same), policy(&next), "{same}");
    }
    assert!(house.egress(&other).is_open());

    house.control.stop().await;
    house.restart(KEY).await;
    for same in [&fork, &copy, &resumed] {
        house.until_status(same, Ok(Status::Running)).await;
        assert_eq!(house.egress(same), policy(&next), "{same}");
    }
    house.update(&fork, &json!({"mode": "allow_all"})).await.unwrap();
    assert!(house.egress(&fork).is_open() && !house.egress(&resumed).is_open());
    house.control.stop().await;
}

#[tokio::test]
async fn a_change_that_fails_leaves_the_policy_before_on_the_host_and_in_the_row() {
    let mut house = House::new(usual()).await;
    let before = json!({"mode": "custom", "deny_cidrs": ["8.8.8.8"]});
    let id = house.create(json!({"network": {"egress": before}})).await;
    house.host.state.failing_egress.store(1, Ordering::SeqCst);
    assert_eq!(house.update(&id, &json!({"mode": "allow_all"})).await.unwrap_err().code, Code::InternalError);
    assert_eq!(house.egress(&id), policy(&before));
    house.control.stop().await;
    house.restart(KEY).await;
    house.until_status(&id, Ok(Status::Running)).await;
    assert_eq!(house.egress(&id), policy(&before));

    // The database refuses: the host gets the policy before back.
    house.control.inner.db.close().await;
    assert!(house.update(&id, &json!({"mode": "deny_all"})).await.is_err());
    assert_eq!(house.egress(&id), policy(&before));
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_with_its_reason() {
    let house = House::new(usual()).await;
    let open = json!({"mode": "allow_all"});
    let closed = house.create(json!({"internet_access": false})).await;
    let refused = house.update(&closed, &open).await.unwrap_err();
    assert_eq!(refused.code, Code::TransitionConflict);
    assert!(refused.message.contains("internet_access false"), "{refused}");
    house.update(&closed, &json!({"mode": "deny_all"})).await.unwrap();

    let id = house.create(json!({})).await;
    let wrong = house.update(&id, &json!({"mode": "custom", "allow_cidrs": ["example.com"]})).await.unwrap_err();
    assert_eq!(wrong.code, Code::InvalidRequest);
    assert!(wrong.message.contains("host names are not supported"), "{wrong}");
    house.pause(&id).await.unwrap();
    assert_eq!(house.update(&id, &open).await.unwrap_err().code, Code::SandboxNotReady);
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    assert_eq!(house.update(&id, &open).await.unwrap_err().code, Code::SandboxNotFound);
    house.control.stop().await;
}

#[tokio::test]
async fn where_policies_do_not_hold_they_are_refused_before_anything_starts() {
    let house = House::new(usual()).await;
    let paused = house.create(json!({"network": {"deny_out": ["8.8.8.8"]}})).await;
    house.pause(&paused).await.unwrap();
    house.host.state.no_egress.store(true, Ordering::SeqCst);
    let starts = house.starts();
    for network in
        [json!({"deny_out": ["1.1.1.1"]}), json!({"egress": {"mode": "allow_all", "rate_limit": {"pps": 5}}})]
    {
        let request: CreateSandboxRequest =
            serde_json::from_value(json!({"template": "web", "network": network})).unwrap();
        let refused = house.control.create_sandbox(&house.caller, request, &context(None)).await.unwrap_err();
        assert_eq!(refused.code, Code::NotImplemented);
    }
    assert_eq!(house.resume(&paused).await.unwrap_err().code, Code::NotImplemented);
    assert_eq!((house.starts(), house.status(&paused).await), (starts, Ok(Status::Paused)));

    // An isolated machine denies all just as well; what is in force already can be asked for again.
    let closed = house.create(json!({"network": {"egress": {"mode": "deny_all"}}})).await;
    assert!(house.egress(&closed).denies_all());
    assert_eq!(house.update(&closed, &json!({"mode": "allow_all"})).await.unwrap_err().code, Code::NotImplemented);
    let again = house.update(&closed, &json!({"mode": "deny_all"})).await.unwrap();
    assert_eq!(again.egress.mode, NetworkEgressPolicyMode::DenyAll);
    house.control.stop().await;
}
